"""Attribution methods: each takes a model and images and gives float maps.

    maps = grad_cam(model, images, targets=None, layer=None)

`maps` is float32 `[images, height, width]`. All of them work on plain, wrapped
and stripped `tf_keras` models, for a class of its own for each image.
"""

from keras_attr_preserve.attribution.equal_weighted import equal_weighted
from keras_attr_preserve.attribution.grad_cam import grad_cam
from keras_attr_preserve.attribution.tf_explain import integrated_gradients

__all__ = ["equal_weighted", "grad_cam", "integrated_gradients"]
