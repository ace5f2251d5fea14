"""Compares the speed of attribution with a forward pass and with peers.

    python -m examples.benchmarks.bench_attribution

Every method explains the same images with the same model. Methods and peers
take turns in short blocks, so other load on the machine affects all alike. The
ratios are medians over blocks. Peers are tf-explain, Xplique, PAIR saliency
and, for relevance, Captum. The table has only the installed peers.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping

# tf-explain and Xplique use `tf.keras`; TensorFlow reads this only once.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import app, flags

from examples.benchmarks.bench_peers import Methods, Settings, batch_size, peers
from keras_attr_preserve import attribution

SIZES = flags.DEFINE_list("sizes", ["32", "96", "224"], "Heights and widths.")
PICTURES = flags.DEFINE_integer(
    "pictures", 64, "Pictures of the methods of a single pass.", lower_bound=1)
FEW = flags.DEFINE_integer(
    "few_pictures", 8, "Pictures of the methods of many passes.", lower_bound=1)
BLOCKS = flags.DEFINE_integer("blocks", 7, "Blocks each.", lower_bound=1)
METHODS = flags.DEFINE_list("methods", None, "Methods; all where not given.")

MANY_PASSES = ("integrated_gradients", "smooth_grad", "var_grad", "score_cam",
               "occlusion", "rise")


def build(size: int) -> keras.Model:
  """Builds MobileNetV1 0.25 with weights drawn by a seed.

  For 32x32 images the first stride is 1, as is usual for CIFAR. Otherwise the
  last block would have a single position, and no map.
  """
  keras.utils.set_random_seed(size)
  model = keras.applications.MobileNet(
      (size, size, 3), 0.25, weights=None, classes=10,
      classifier_activation=None)
  if size > 32:
    return model

  def copy(layer):
    settings = layer.get_config()
    if layer.name == "conv1":
      settings["strides"] = (1, 1)
    return type(layer).from_config(settings)

  return keras.models.clone_model(model, clone_function=copy)


def ours(model: keras.Model, layer: str) -> Methods:
  """Returns our methods, with the settings of their peers."""
  many = {"batch_size": batch_size(model)}
  noisy = {"samples": Settings.samples, "noise": Settings.noise, **many}
  given = {
      "grad_cam": {"layer": layer},
      "grad_cam_plus_plus": {"layer": layer},
      "hires_cam": {"layer": layer},
      "layer_cam": {"layer": layer},
      "saliency": {},
      "gradient_x_input": {},
      "guided_backprop": {},
      "full_grad": {},
      "lrp epsilon": {"preset": "epsilon"},
      "lrp": {"preset": "epsilon_plus"},
      "excitation_backprop": {},
      "relative_attributing_propagation": {},
      "integrated_gradients": {"steps": Settings.points - 1, **many},
      "smooth_grad": noisy,
      "var_grad": noisy,
      "score_cam": {"layer": layer, **many},
      "occlusion": {"patch": model.input_shape[1] // 8,
                    "stride": model.input_shape[1] // 8, "baseline": 0, **many},
      "rise": {"masks": Settings.masks, **many},
  }

  def run(name, settings):
    method = getattr(attribution, name.split()[0])
    return lambda x: method(model, x, Settings.target, **settings)

  return {name: run(name, settings) for name, settings in given.items()}


def measure(
    functions: Mapping[str, Callable[[np.ndarray], object]],
    pictures: np.ndarray,
) -> dict[str, list[float]]:
  """Times all functions in turns after one warm-up run, in s per block."""
  for function in functions.values():
    function(pictures)
  times: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(BLOCKS.value):
    for name, function in functions.items():
      start = time.perf_counter()
      function(pictures)
      times[name].append(time.perf_counter() - start)
  return times


def line(name: str, times: dict[str, list[float]], pictures: int) -> str:
  """Formats a method's cost and how much longer each peer takes."""
  def ratio(one, other):
    return statistics.median(a / b for a, b in zip(times[one], times[other]))

  ratios = {peer: ratio(peer, name) for peer in times
           if peer not in (name, "forward")}
  least = min(ratios, key=ratios.get, default=None)
  each = ", ".join(f"{peer} {value:.2f}" for peer, value in ratios.items())
  return (f"{name:<33}{1e3 * statistics.median(times[name]) / pictures:>12.3f}"
          f"{ratio('forward', name):>12.3f}"
          f"{f'{ratios[least]:.2f}' if ratios else '':>12}   {each}")


def main(_: list[str]) -> None:
  """Measures all methods and prints a table."""
  for size in map(int, SIZES.value):
    model = build(size)
    pictures = np.random.default_rng(0).uniform(
        -1, 1, [PICTURES.value, size, size, 3]).astype(np.float32)
    forward = tf.function(model).get_concrete_function(
        tf.TensorSpec([None, size, size, 3], tf.float32))

    def scores(x, forward=forward):
      return np.concatenate([forward(tf.constant(x[i:i + 64])).numpy()
                             for i in range(0, len(x), 64)])

    layer = "conv_pw_13_relu"
    others, missing = peers(model, layer)
    print(f"\n{size}x{size}; not installed: {', '.join(missing) or 'none'}\n"
          f"{'method':<33}{'ms/picture':>12}{'of forward':>12}"
          f"{'fastest':>12}   times as fast as")
    for name, method in ours(model, layer).items():
      if METHODS.value and name not in METHODS.value:
        continue
      few = pictures[:FEW.value] if name in MANY_PASSES else pictures
      times = measure(
          {"forward": scores, name: method,
           **{peer: methods[name] for peer, methods in others.items()
              if name in methods}}, few)
      print(line(name, times, len(few)), flush=True)


if __name__ == "__main__":
  app.run(main)
