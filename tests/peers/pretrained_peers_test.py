"""Real models and images: Xplique 2.0.2 gives the same maps.

The models end in a softmax; the peer gets twins that end in the logits.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution, evaluation
from tests.export.conversion import pretrained_test as pretrained
from tests.peers.installed import need

need("xplique", "2.0.2", tf_keras=True)

from xplique import attributions as theirs  # noqa: E402
from xplique import metrics  # noqa: E402

NETS = ("resnet", "person", "imagenet")
COUNT = 4


@functools.cache
def _setting(name):
  """A model, its twin, and images in the range that it takes."""
  if name == "resnet":
    path, pictures = pretrained.RESNET / "pretrainedResnet.h5", (
        pretrained.cifar("test", COUNT))
  elif name == "person":
    path, pictures = pretrained.VWW / "vww_96.h5", (
        pretrained.voc(2, COUNT, 96) / 255)
  else:
    path, pictures = "imagenet_mobilenet_v1_025/mobilenet_v1_0.25_224.h5", (
        pretrained.voc(2, COUNT, 224) / 127.5 - 1)
  model = pretrained.load(path)
  twin = keras.models.load_model(pretrained.model_path(path), compile=False)
  last = next(layer for layer in reversed(twin.layers)
              if hasattr(layer, "activation"))
  last.activation = keras.activations.linear
  # Probabilities would add up to 1.
  assert not np.allclose(twin(pictures).numpy().sum(1), 1)
  return model, twin, pictures, twin(pictures).numpy().argmax(1)


def _hot(twin, classes):
  return np.eye(twin.output.shape[-1], dtype=np.float32)[classes]


@pytest.mark.slow("pretrained")
class RealNetsTest(parameterized.TestCase):

  # In single images float32 rounds a unit to the other side of its ReLU. On
  # MobileNet .02 was measured; of a path's many points some meet one in every
  # image, .002 at the median.
  KINKS = 5e-2

  def _check(self, got, want, bound=1e-4, kinks=None):
    got, want = np.asarray(got), np.asarray(want)
    axes = tuple(range(1, got.ndim)) or None
    errors = np.abs(got - want).max(axes) / np.abs(want).max(axes)
    print(f"{self.id().split('.')[-1]}: {np.median(errors):.1e} at the median, "
          f"{np.max(errors):.1e} at worst")
    self.assertLess(np.median(errors), bound)
    self.assertLess(np.max(errors), kinks or bound)

  @parameterized.parameters(*NETS)
  def test_saliency(self, name):
    model, twin, pictures, classes = _setting(name)
    self._check(attribution.saliency(model, pictures),
                theirs.Saliency(twin)(pictures, _hot(twin, classes))[..., 0],
                kinks=self.KINKS)

  @parameterized.parameters(*NETS)
  def test_gradient_x_input(self, name):
    model, twin, pictures, classes = _setting(name)
    self._check(
        attribution.gradient_x_input(model, pictures),
        theirs.GradientInput(twin, reducer="sum")(
            pictures, _hot(twin, classes))[..., 0], kinks=self.KINKS)

  @parameterized.parameters(*NETS)
  def test_integrated_gradients(self, name):
    model, twin, pictures, classes = _setting(name)
    self._check(
        attribution.integrated_gradients(model, pictures, steps=10),
        theirs.IntegratedGradients(twin, reducer="sum", steps=11)(
            pictures, _hot(twin, classes))[..., 0],
        1e-2 if name == "imagenet" else 1e-4, kinks=self.KINKS)

  def test_guided_backprop(self):
    # The peer has another rule for ReLU6, which the other models have.
    model, twin, pictures, classes = _setting("resnet")
    want = theirs.GuidedBackprop(twin, reducer=None)(
        pictures, _hot(twin, classes))
    self._check(attribution.guided_backprop(model, pictures),
                np.abs(want).max(-1))

  @parameterized.parameters(
      ("resnet", "activation_6"), ("resnet", "activation_4"),
      ("person", "activation_26"), ("person", "activation_18"),
      ("imagenet", "conv_pw_13_relu"), ("imagenet", "conv_pw_11_relu"))
  def test_grad_cam(self, name, layer):
    model, twin, pictures, classes = _setting(name)
    maps = attribution.grad_cam(model, pictures, layer=layer)
    want = theirs.GradCAM(twin, conv_layer=layer)(
        pictures, _hot(twin, classes))[..., 0]
    got = tf.image.resize(
        maps[..., None], pictures.shape[1:3], "bicubic")[..., 0]
    self._check(got, want)

  @parameterized.parameters(("resnet", 8), ("person", 24), ("imagenet", 56))
  def test_occlusion(self, name, patch):
    _, twin, pictures, classes = _setting(name)
    want = theirs.Occlusion(
        twin, patch_size=patch, patch_stride=patch, occlusion_value=0.5)(
            pictures, _hot(twin, classes))[..., 0]
    # Differences of scores, of float32 sums.
    self._check(attribution.occlusion(
        twin, pictures, patch=patch, stride=patch, baseline=0.5), want, 1e-3)

  @parameterized.parameters(*NETS)
  def test_deletion(self, name):
    model, twin, pictures, classes = _setting(name)
    maps = attribution.saliency(model, pictures)
    want = metrics.Deletion(
        twin, pictures, _hot(twin, classes), steps=8).detailed_evaluate(maps)
    got = evaluation.deletion(twin, pictures, maps, steps=8)
    self._check(got.scores.mean(0), list(want.values()))


if __name__ == "__main__":
  absltest.main()
