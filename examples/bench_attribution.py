"""What attribution costs: throughput beside a forward pass and beside a peer.

    python -m examples.bench_attribution

Every method explains the same pictures by the same net. Methods and peers take
turns in short blocks, so that whatever else the machine does falls on all
alike; the ratios are medians over blocks. The peer is tf-explain, whose static
methods take a `tf_keras` model and give the same numbers for one class.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import app, flags

from keras_attr_preserve import attribution

SIZES = flags.DEFINE_list("sizes", ["32", "96", "224"], "Heights and widths.")
PICTURES = flags.DEFINE_integer("pictures", 64, "Pictures.", lower_bound=1)
BLOCKS = flags.DEFINE_integer("blocks", 7, "Blocks each.", lower_bound=1)

STEPS = 10
SAMPLES = 5
TARGET = 3


def build(size: int) -> keras.Model:
  """Builds MobileNetV1 0.25 with weights drawn by a seed."""
  keras.utils.set_random_seed(size)
  return keras.applications.MobileNet(
      (size, size, 3), 0.25, weights=None, classes=10,
      classifier_activation=None)


def ours(model: keras.Model) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
  """Our methods, with the settings of their peers."""
  # The last layer has a single position where pictures are small.
  layer = "conv_pw_13_relu" if model.input_shape[1] > 32 else "conv_pw_11_relu"
  return {
      "grad_cam": lambda x: attribution.grad_cam(model, x, TARGET, layer),
      "saliency": lambda x: attribution.saliency(model, x, TARGET),
      "gradient_x_input": lambda x: attribution.gradient_x_input(
          model, x, TARGET),
      "integrated_gradients": lambda x: attribution.integrated_gradients(
          model, x, TARGET, steps=STEPS - 1),
      "smooth_grad": lambda x: attribution.smooth_grad(
          model, x, TARGET, samples=SAMPLES),
      "lrp": lambda x: attribution.lrp(model, x, TARGET),
  }


def peers(model: keras.Model) -> dict[str, Callable[[np.ndarray], object]]:
  """tf-explain's methods on the whole batch, as its own `explain` runs them."""
  from tf_explain.core.gradients_inputs import GradientsInputs
  from tf_explain.core.integrated_gradients import IntegratedGradients
  from tf_explain.core.smoothgrad import SmoothGrad
  from tf_explain.core.vanilla_gradients import VanillaGradients

  def integrated(x):
    path = IntegratedGradients.generate_interpolations(x, STEPS)
    return IntegratedGradients.get_integrated_gradients(
        path, model, TARGET, STEPS).numpy()

  def smooth(x):
    noisy = SmoothGrad.generate_noisy_images(x, SAMPLES, 0.15)
    return SmoothGrad.get_averaged_gradients(
        noisy, model, TARGET, SAMPLES).numpy()

  return {
      "saliency": lambda x: VanillaGradients.compute_gradients(
          x, model, TARGET).numpy(),
      "gradient_x_input": lambda x: GradientsInputs.compute_gradients(
          x, model, TARGET).numpy(),
      "integrated_gradients": integrated,
      "smooth_grad": smooth,
  }


def measure(
    functions: dict[str, Callable[[np.ndarray], object]], pictures: np.ndarray
) -> dict[str, list[float]]:
  """Times all functions in turns, after one run to warm up; seconds a block."""
  for function in functions.values():
    function(pictures)
  times: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(BLOCKS.value):
    for name, function in functions.items():
      start = time.perf_counter()
      function(pictures)
      times[name].append(time.perf_counter() - start)
  return times


def main(_: list[str]) -> None:
  """Measures and prints a table."""
  print(f"{'size':>4}  {'method':<22}{'ms a picture':>13}"
        f"{'of forward':>12}{'tf-explain ms':>15}{'times as fast':>15}")
  for size in map(int, SIZES.value):
    model = build(size)
    pictures = np.random.default_rng(0).uniform(
        -1, 1, [PICTURES.value, size, size, 3]).astype(np.float32)
    forward = tf.function(model).get_concrete_function(
        tf.TensorSpec([None, size, size, 3], tf.float32))

    def scores(x, forward=forward):
      return np.concatenate([forward(tf.constant(x[i:i + 64])).numpy()
                             for i in range(0, len(x), 64)])

    mine, theirs = ours(model), peers(model)
    times = measure({
        "forward": scores, **mine,
        **{f"peer {name}": one for name, one in theirs.items()}}, pictures)

    def ratio(one, other, times=times):
      return statistics.median(
          a / b for a, b in zip(times[one], times[other]))

    for name in mine:
      ms = 1e3 * statistics.median(times[name]) / len(pictures)
      line = f"{size:>4}  {name:<22}{ms:>13.3f}{ratio('forward', name):>12.2f}"
      if name in theirs:
        peer = f"peer {name}"
        ms = 1e3 * statistics.median(times[peer]) / len(pictures)
        line += f"{ms:>15.3f}{ratio(peer, name):>15.2f}"
      print(line, flush=True)


if __name__ == "__main__":
  app.run(main)
