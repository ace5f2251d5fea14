"""Critical pathways: the units that make a score, and the gradient by them."""

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
    units: for each ReLU, by name and in running order, bool `[images, ...]`:
      which of its units are on the pathway.
    alive: the same shapes: which units are not zero.
  """

  units: Mapping[str, np.ndarray]
  alive: Mapping[str, np.ndarray]

  def shares(self) -> dict[str, np.ndarray]:
    """Share of each ReLU's units on the pathway, `[images]`, 0..1."""
    return {name: _by_image(one).mean(1) for name, one in self.units.items()}

  def dead(self) -> dict[str, np.ndarray]:
    """Share of each ReLU's units that are zero, `[images]`, 0..1."""
    return {name: 1 - _by_image(one).mean(1)
            for name, one in self.alive.items()}

  def overlap(self, other: "Pathway") -> np.ndarray:
    """Compares with the pathway of another net or method, image by image.

    Args:
      other: of as many ReLUs of the same shapes, in the same order; their
        names may differ.

    Returns:
      Units in both over units in either (Jaccard), float64 `[images]`, 0..1; 1
      where both are empty.

    Raises:
      ValueError: shapes that differ.
    """
    ours, theirs = list(self.units.values()), list(other.units.values())
    if [one.shape for one in ours] != [one.shape for one in theirs]:
      raise ValueError(
          "other must have ReLUs of the same shapes, in the same order; got "
          f"{[one.shape for one in theirs]} for {[one.shape for one in ours]}.")
    both = sum(_by_image(a & b).sum(1) for a, b in zip(ours, theirs))
    either = sum(_by_image(a | b).sum(1) for a, b in zip(ours, theirs))
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

  for every unit of every ReLU, a the activations of its layer; "intgrad" scales
  one layer's activations at a time and lets the rest of the net follow, what
  goes past the layer standing still. The pathway is the share `keep` of all
  units with the highest s, over all layers at once; a unit with s = 0 is never
  on it.

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

  The gradient passes a ReLU where the unit is on the pathway and nowhere else;
  with `keep=1` it is the plain gradient but for units that do not matter. Since
  the strongest units are chosen over all layers at once, a layer may be left
  without any: then no gradient gets through, and the map is dead. Raise `keep`:
  with 0.1 half of the maps of ImageNet's MobileNetV1 0.25 are, with 0.3 none.

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
  """Maps, names of the ReLUs, and for each its chosen and its live units."""
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
            *[one > 0 for one in units])

  maps, names, *arrays = run_model(
      model, ("pathways", method, keep, steps), run, images, *weights,
      batch_size=batch_size)
  return maps, [name.decode() for name in names[0]], arrays


def _strongest(scores: list[tf.Tensor], keep: float) -> list[tf.Tensor]:
  """Marks the share of all units of an image with the highest scores."""
  flat = tf.concat([tf.reshape(one, [tf.shape(one)[0], -1])
                    for one in scores], 1)
  count = tf.cast(tf.math.ceil(
      keep * tf.cast(tf.shape(flat)[1], tf.float32)), tf.int32)
  least = tf.sort(flat, direction="DESCENDING")[:, count - 1]
  return [tf.logical_and(one > 0, one >= tf.reshape(
      least, [-1] + [1] * (one.shape.rank - 1))) for one in scores]


def _along(relus, chosen):
  """A rule that lets a gradient through where a unit is chosen."""
  masks = {op.name: mask for op, mask in zip(relus, chosen)}

  def rule(op, grad):
    return tf.where(masks[op.name], grad, 0.0)
  return rule


def _slopes(order, logits, seed, units, steps) -> list[tf.Tensor]:
  """The score's mean gradient by each layer over scalings of that layer."""
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


def _replayed(order, wanted, tensor, replacement) -> tf.Tensor:
  """Runs what hangs on a tensor once more, with another in its place."""
  new = {tensor.ref(): replacement}
  graph = tf.compat.v1.get_default_graph()
  for op in order:
    if any(one.ref() in new for one in op.inputs) and (
        op.outputs[0] is not tensor):
      again = graph.create_op(
          op.type, [new.get(one.ref(), one) for one in op.inputs],
          [output.dtype for output in op.outputs], attrs=op.node_def.attr)
      new.update((old.ref(), one)
                 for old, one in zip(op.outputs, again.outputs))
  return new[wanted.ref()]


def _by_image(array: np.ndarray) -> np.ndarray:
  return array.reshape(len(array), -1)
