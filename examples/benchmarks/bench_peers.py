"""Other libraries' attribution methods, as functions of a batch of images.

`peers` names the libraries that are not installed. All methods explain the same
class of the same model. Captum explains a PyTorch model of the same
architecture with other weights, as the time does not depend on them.

PAIR's occlusion (a window at every pixel) and its Grad-CAM are left out. They
take one image a call, in more calls than the other libraries.
"""

import contextlib
import io
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from keras_attr_preserve.models.running import full_batch

__all__ = ["Methods", "Settings", "batch_size", "peers"]

Methods = dict[str, Callable[[np.ndarray], object]]


class Settings:
  """The settings of every library's methods."""

  target = 3
  points = 50  # Of integrated gradients, both ends among them.
  samples = 50  # Of SmoothGrad and VarGrad.
  noise = 0.15
  masks = 128  # Of RISE.


def batch_size(model: keras.Model) -> int:
  """Returns the batch size of every library that runs in batches."""
  return full_batch(None, np.empty((1, *model.input_shape[1:])))


def peers(model: keras.Model, layer: str) -> tuple[
    dict[str, Methods], list[str]]:
  """Collects the methods of the installed libraries.

  Args:
    model: MobileNetV1 0.25 without a softmax.
    layer: the layer of Grad-CAM.

  Returns:
    The methods by library and by our names, and the missing libraries.
  """
  methods, missing = {}, []
  for name, make in (("tf-explain", _tf_explain), ("Xplique", _xplique),
                     ("PAIR saliency", _pair), ("Captum", _captum)):
    try:
      methods[name] = make(model, layer)
    except ModuleNotFoundError as error:
      missing.append(f"{name} ({error.name})")
  return methods, missing


def _tf_explain(model: keras.Model, layer: str) -> Methods:
  """Runs the static methods on the whole batch, as `explain` does."""
  from tf_explain.core.grad_cam import GradCAM
  from tf_explain.core.gradients_inputs import GradientsInputs
  from tf_explain.core.integrated_gradients import IntegratedGradients
  from tf_explain.core.occlusion_sensitivity import OcclusionSensitivity
  from tf_explain.core.smoothgrad import SmoothGrad
  from tf_explain.core.vanilla_gradients import VanillaGradients

  target = Settings.target
  covering = OcclusionSensitivity(batch_size=batch_size(model))

  def grad_cam(x):
    outputs, gradients = GradCAM.get_gradients_and_filters(
        model, x, layer, target, False)
    return np.array(GradCAM.generate_ponderated_output(outputs, gradients))

  def integrated(x):
    path = IntegratedGradients.generate_interpolations(x, Settings.points)
    return IntegratedGradients.get_integrated_gradients(
        path, model, target, Settings.points).numpy()

  def smooth(x):
    noisy = SmoothGrad.generate_noisy_images(
        x, Settings.samples, Settings.noise)
    return SmoothGrad.get_averaged_gradients(
        noisy, model, target, Settings.samples).numpy()

  def occlusion(x):
    with contextlib.redirect_stdout(io.StringIO()):  # Hides progress.
      return [covering.get_sensitivity_map(
          model, image, target, x.shape[1] // 8) for image in x]

  return {
      "grad_cam": grad_cam,
      "saliency": lambda x: VanillaGradients.compute_gradients(
          x, model, target).numpy(),
      "gradient_x_input": lambda x: GradientsInputs.compute_gradients(
          x, model, target).numpy(),
      "integrated_gradients": integrated,
      "smooth_grad": smooth,
      "occlusion": occlusion,
  }


def _xplique(model: keras.Model, layer: str) -> Methods:
  import xplique.attributions as xplique

  size = model.input_shape[1]
  batch = {"batch_size": batch_size(model)}
  noisy = {"nb_samples": Settings.samples, "noise": Settings.noise, **batch}
  methods = {
      "grad_cam": xplique.GradCAM(model, conv_layer=layer, **batch),
      "grad_cam_plus_plus": xplique.GradCAMPP(model, conv_layer=layer, **batch),
      "saliency": xplique.Saliency(model, **batch),
      "gradient_x_input": xplique.GradientInput(model, **batch),
      "guided_backprop": xplique.GuidedBackprop(model, **batch),
      "integrated_gradients": xplique.IntegratedGradients(
          model, steps=Settings.points, **batch),
      "smooth_grad": xplique.SmoothGrad(model, **noisy),
      "var_grad": xplique.VarGrad(model, **noisy),
      "occlusion": xplique.Occlusion(
          model, patch_size=size // 8, patch_stride=size // 8, **batch),
      "rise": xplique.Rise(model, nb_samples=Settings.masks, **batch),
  }

  def run(method):
    def maps(x):
      targets = np.eye(model.output_shape[1], dtype=np.float32)[
          [Settings.target] * len(x)]
      return method(x, targets).numpy()
    return maps

  return {name: run(method) for name, method in methods.items()}


def _pair(model: keras.Model, layer: str) -> Methods:
  """Runs one image a call; integrated gradients batches its points."""
  del layer
  import saliency.core as saliency

  @tf.function(reduce_retracing=True)
  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      score = model(x)[:, Settings.target]
    return tape.gradient(score, x)

  def call(x, call_model_args=None, expected_keys=None):
    del call_model_args, expected_keys
    return {saliency.INPUT_OUTPUT_GRADIENTS: gradient(
        tf.constant(x, tf.float32)).numpy()}

  plain, path = saliency.GradientSaliency(), saliency.IntegratedGradients()
  return {
      "saliency": lambda x: [plain.GetMask(image, call) for image in x],
      "smooth_grad": lambda x: [plain.GetSmoothedMask(
          image, call, stdev_spread=Settings.noise, nsamples=Settings.samples,
          magnitude=False) for image in x],
      "integrated_gradients": lambda x: [path.GetMask(
          image, call, x_steps=Settings.points, batch_size=batch_size(model))
          for image in x],
  }


def _captum(model: keras.Model, layer: str) -> Methods:
  """Computes relevance by the rules of "epsilon" and "epsilon_plus"."""
  del layer
  import torch
  from captum.attr import LRP
  from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

  torch.set_num_threads(os.cpu_count())
  by_epsilon, by_sign = (_torch_mobile_net(model) for _ in range(2))
  for module in by_sign.modules():
    if isinstance(module, torch.nn.Conv2d):
      module.rule = Alpha1_Beta0_Rule()
    elif isinstance(module, torch.nn.BatchNorm2d | torch.nn.Linear):
      module.rule = EpsilonRule()

  def run(net):
    def maps(x):
      images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
      return np.concatenate([
          LRP(net).attribute(batch, Settings.target).sum(1).detach().numpy()
          for batch in images.split(32)])
    return maps

  return {"lrp epsilon": run(by_epsilon), "lrp": run(by_sign)}


def _torch_mobile_net(model: keras.Model):
  """Builds the layers in PyTorch; ReLU, as Captum has no rule for ReLU6."""
  from torch import nn

  channels, modules = 3, []
  for layer in model.layers:
    if isinstance(layer, keras.layers.DepthwiseConv2D):
      modules.append(nn.Conv2d(channels, channels, 3, layer.strides[0], 1,
                               groups=channels, bias=False))
    elif isinstance(layer, keras.layers.Conv2D) and not layer.use_bias:
      size, filters = layer.kernel_size[0], layer.filters
      modules.append(nn.Conv2d(channels, filters, size, layer.strides[0],
                               size // 2, bias=False))
      channels = filters
    elif isinstance(layer, keras.layers.BatchNormalization):
      modules += [nn.BatchNorm2d(channels), nn.ReLU()]

  class MobileNet(nn.Module):

    def __init__(self):
      super().__init__()
      self.features = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1))
      self.scores = nn.Linear(channels, model.output_shape[1])

    def forward(self, x):
      return self.scores(self.features(x).flatten(1))

  return MobileNet().eval()
