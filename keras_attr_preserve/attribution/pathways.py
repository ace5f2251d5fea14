"""Critical pathways: a score's main units, and the gradient through them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import no_layer
from keras_attr_preserve.attribution.operations import operations_between
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.gradient_rules import (
  STRAIGHT_THROUGH,
  gradient_rules,
)
from keras_attr_preserve.models.running import run_model
from keras_attr_preserve.models.scores import class_weights, top_class_seed

__all__ = ["Pathway", "pathway_gradient", "select_pathway"]

_METHODS = ("mct", "intgrad")
_RELUS = ("Relu", "Relu6")


@dataclasses.dataclass(frozen=True)
class Pathway:
  """The units on which each image's score rests.

  Attributes:
    units: bool `[images, ...]` for each ReLU, by name and in running order:
      whether a unit is on the pathway.
    alive: the same shapes: whether a unit is not zero.
  """

  units: Mapping[str, np.ndarray]
  alive: Mapping[str, np.ndarray]

  def shares(self) -> dict[str, np.ndarray]:
    """Returns each ReLU's share of units on the pathway, `[images]`, 0..1."""
    return {name: _by_image(mask).mean(1)
            for name, mask in self.units.items()}

  def dead(self) -> dict[str, np.ndarray]:
    """Returns each ReLU's share of zero units, `[images]`, 0..1."""
    return {name: 1 - _by_image(mask).mean(1)
            for name, mask in self.alive.items()}

  def overlap(self, other: "Pathway") -> np.ndarray:
    """Compares with the pathway of another model or method, image by image.

    Args:
      other: a pathway with as many ReLUs of the same shapes, in the same order;
        their names may differ.

    Returns:
      Units in both over units in either (Jaccard), float64 `[images]`, 0..1; 1
      where both are empty.

    Raises:
      ValueError: the shapes differ.
    """
    masks, others = list(self.units.values()), list(other.units.values())
    if [mask.shape for mask in masks] != [mask.shape for mask in others]:
      raise ValueError(
          "other must have ReLUs of the same shapes, in the same order; got "
          f"{[mask.shape for mask in others]} for "
          f"{[mask.shape for mask in masks]}.")
    both = sum(_by_image(a & b).sum(1) for a, b in zip(masks, others))
    either = sum(_by_image(a | b).sum(1) for a, b in zip(masks, others))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def select_pathway(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    *,
    method: str = "mct",
    keep: float = 0.1,
    steps: int = 10,
    batch_size: int = 16,
) -> Pathway:
  """Finds the units that matter most to a score.

      mct       s_i = |a_i dy/da_i|
      intgrad   s_i = |a_i 1/N sum_{j=1..N} dy/da_i at (j/N) a|

  Every unit of every ReLU has a score s_i; a are the activations of its layer.
  "intgrad" scales the activations of one layer at a time. Later layers follow;
  branches around the layer stay as they are. The pathway is the share `keep` of
  all units, over all layers at once, with the highest s. A unit with s = 0 is
  never on it.

  Args:
    model: a built `tf_keras` model with ReLUs, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    method: "mct" or "intgrad".
    keep: share of the units, above 0 and at most 1.
    steps: N of "intgrad", 1 or more.
    batch_size: images per batch.

  Returns:
    The pathway of each image.

  Raises:
    TypeError, ValueError: an argument is not as above, or there is no ReLU.

  References:
    Khakzar et al. 2021, https://arxiv.org/abs/2103.16886, section 4.
  """
  _, names, arrays = _run(model, images, targets, method, keep, steps,
                          batch_size)
  half = len(names)
  return Pathway(dict(zip(names, arrays[:half])),
                 dict(zip(names, arrays[half:])))


def pathway_gradient(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    method: str = "mct",
    keep: float = 0.1,
    steps: int = 10,
    batch_size: int = 16,
) -> np.ndarray:
  """Explains a score by its gradient along the critical pathway alone.

  The gradient passes a ReLU only at units on the pathway. With `keep=1` it is
  the plain gradient, except at units that do not matter. The strongest units
  are chosen over all layers at once, so a layer may have none. Then no gradient
  gets through, and the map is zero. A higher `keep` helps: of the maps of
  ImageNet's MobileNetV1 0.25, half are zero with 0.1, none with 0.3.

  Args:
    model: as for `select_pathway`.
    images: as for `select_pathway`.
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    method: see `select_pathway`.
    keep: see `select_pathway`.
    steps: see `select_pathway`.
    batch_size: see `select_pathway`.

  Returns:
    Maps, float32 `[images, height, width]`, not negative: the largest magnitude
    over the channels.

  Raises:
    TypeError, ValueError: an argument is not as above, or there is no ReLU.

  References:
    Khakzar et al. 2021, https://arxiv.org/abs/2103.16886, section 5.
  """
  no_layer(layer)
  return _run(model, images, targets, method, keep, steps, batch_size,
              of_input=True)[0]


def _run(model, images, targets, method, keep, steps, batch_size,
         of_input=False):
  """Returns maps, the ReLUs' names, and their chosen and nonzero units."""
  check_keras(model)
  if method not in _METHODS:
    raise ValueError(f"method must be one of {_METHODS}; got {method!r}.")
  if not 0 < keep <= 1:
    raise ValueError(f"keep must be above 0 and at most 1; got {keep}.")
  if steps < 1:
    raise ValueError(f"steps must be 1 or more; got {steps}.")
  tap = KnownTap(model)
  images = tap.pixels(images, places=of_input)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)
  def run(batch, *seed):
    batch = tf.identity(batch)
    logits = tap(batch).logits
    seed, = seed or (top_class_seed(logits),)
    seed = tf.cast(seed, logits.dtype)
    order = operations_between(batch, logits)
    relus = [op for op in order if op.type in _RELUS]
    if not relus:
      raise ValueError(
          f"model {model.name!r} has no ReLU, and so no critical pathway.")
    units = [op.outputs[0] for op in relus]
    with gradient_rules(STRAIGHT_THROUGH):
      slopes = (_slopes(order, logits, seed, units, steps)
                if method == "intgrad" else
                tf.gradients(logits, units, grad_ys=seed,
                             unconnected_gradients="zero"))
    chosen = _strongest([tf.abs(unit * slope)
                         for unit, slope in zip(units, slopes)], keep)
    rule = _along(relus, chosen)
    with gradient_rules({**STRAIGHT_THROUGH, "Relu": rule, "Relu6": rule}):
      gradient, = tf.gradients(logits, batch, grad_ys=seed,
                               unconnected_gradients="zero")
    names = tf.constant([op.name.partition("/")[2] or op.name for op in relus])
    # Every output has a row for each image.
    return (tf.reduce_max(tf.abs(gradient), -1),
            tf.repeat(names[None], tf.shape(batch)[0], 0), *chosen,
            *[unit > 0 for unit in units])

  maps, names, *arrays = run_model(
      model, ("pathways", method, keep, steps), run, images, *weights,
      batch_size=batch_size)
  return maps, [name.decode() for name in names[0]], arrays


def _strongest(scores: list[tf.Tensor], keep: float) -> list[tf.Tensor]:
  """Marks the units with the highest scores, a share `keep` per image."""
  flat = tf.concat([tf.reshape(score, [tf.shape(score)[0], -1])
                    for score in scores], 1)
  count = tf.cast(tf.math.ceil(
      keep * tf.cast(tf.shape(flat)[1], tf.float32)), tf.int32)
  least = tf.sort(flat, direction="DESCENDING")[:, count - 1]
  return [tf.logical_and(score > 0, score >= tf.reshape(
      least, [-1] + [1] * (score.shape.rank - 1))) for score in scores]


def _along(relus, chosen):
  """Returns a rule that passes the gradient of chosen units only."""
  masks = {op.name: mask for op, mask in zip(relus, chosen)}

  def rule(op, grad):
    return tf.where(masks[op.name], grad, 0.0)
  return rule


def _slopes(order, logits, seed, units, steps) -> list[tf.Tensor]:
  """Averages the score's gradient by each layer over scalings of the layer."""
  means = []
  for unit in units:
    def add(number, total, unit=unit):
      scaled = unit * tf.cast(number, tf.float32) / steps
      scores = _replayed(order, logits, unit, scaled)
      slope, = tf.gradients(scores, scaled, grad_ys=seed,
                            unconnected_gradients="zero")
      return number + 1, total + slope
    _, total = tf.while_loop(
        lambda number, _: number <= steps, add, (1, tf.zeros_like(unit)))
    means.append(total / steps)
  return means


def _replayed(order, scores, tensor, replacement) -> tf.Tensor:
  """Recomputes the scores with a tensor replaced by another."""
  new = {tensor.ref(): replacement}
  graph = tf.compat.v1.get_default_graph()
  for op in order:
    if any(source.ref() in new for source in op.inputs) and (
        op.outputs[0] is not tensor):
      new_op = graph.create_op(
          op.type, [new.get(source.ref(), source) for source in op.inputs],
          [output.dtype for output in op.outputs], attrs=op.node_def.attr)
      new.update((output.ref(), new_output)
                 for output, new_output in zip(op.outputs, new_op.outputs))
  return new[scores.ref()]


def _by_image(array: np.ndarray) -> np.ndarray:
  return array.reshape(len(array), -1)
