"""Attribution methods: each takes a model and images and gives float maps.

    maps = grad_cam(model, images, targets=None, layer=None)

`maps` is float32 `[images, height, width]`. Every method works on plain,
wrapped and stripped `tf_keras` models. Each image can have its own class.

`occlusion` and `rise` also take any function from images to scores instead of a
model, such as that of a .tflite file.
"""

from keras_attr_preserve.attribution.cam import cam
from keras_attr_preserve.attribution.equal_weighted import equal_weighted
from keras_attr_preserve.attribution.full_grad import full_grad
from keras_attr_preserve.attribution.grad_cam import grad_cam
from keras_attr_preserve.attribution.grad_cam_plus_plus import (
    grad_cam_plus_plus,
)
from keras_attr_preserve.attribution.guided_backprop import guided_backprop
from keras_attr_preserve.attribution.hires_cam import hires_cam
from keras_attr_preserve.attribution.integrated_gradients import (
    Completeness,
    integrated_gradients,
    integrated_gradients_completeness,
)
from keras_attr_preserve.attribution.layer_cam import layer_cam
from keras_attr_preserve.attribution.linearize import Linearization, linearize
from keras_attr_preserve.attribution.occlusion import occlusion
from keras_attr_preserve.attribution.pathways import (
    Pathway,
    pathway_gradient,
    select_pathway,
)
from keras_attr_preserve.attribution.relevance.excitation_backprop import (
    excitation_backprop,
)
from keras_attr_preserve.attribution.relevance.lrp import (
    Conservation,
    lrp,
    lrp_conservation,
)
from keras_attr_preserve.attribution.relevance.rap import (
    relative_attributing_propagation,
)
from keras_attr_preserve.attribution.rise import rise
from keras_attr_preserve.attribution.saliency import gradient_x_input, saliency
from keras_attr_preserve.attribution.score_cam import score_cam
from keras_attr_preserve.attribution.smooth_grad import smooth_grad, var_grad
from keras_attr_preserve.attribution.tf_explain import tf_explain

__all__ = [
    "Completeness",
    "Conservation",
    "Linearization",
    "Pathway",
    "cam",
    "equal_weighted",
    "excitation_backprop",
    "full_grad",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_x_input",
    "guided_backprop",
    "hires_cam",
    "integrated_gradients",
    "integrated_gradients_completeness",
    "layer_cam",
    "linearize",
    "lrp",
    "lrp_conservation",
    "occlusion",
    "pathway_gradient",
    "relative_attributing_propagation",
    "rise",
    "saliency",
    "score_cam",
    "select_pathway",
    "smooth_grad",
    "tf_explain",
    "var_grad",
]
