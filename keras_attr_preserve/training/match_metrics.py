"""The means that a fit reports of the matching, and warnings from them."""

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.training.wcam import WCAM, Match

__all__ = ["MatchMeter"]

DEAD = 0.5
"""A fit warns from this share of dead maps on."""


class MatchMeter:
  """Means over an epoch of how a student's maps match its teacher's.

  Create it under the model's distribution strategy.
  """

  def __init__(self, wcam: WCAM):
    """Creates the means over all layers and, for several, of each layer."""
    self._layers = wcam.layers
    self._shares = wcam.layer_weights
    names = ["attr_loss", "attr_agreement", "attr_dead"]
    if len(wcam.layers) > 1:
      names += [f"{kind}_{layer}" for layer in wcam.layers
                for kind in ("attr_agreement", "attr_dead")]
    self.means = {name: keras.metrics.Mean(name) for name in names}
    # The share of the teacher's maps that are not zero, for warnings only.
    self._alive = {layer: keras.metrics.Mean(f"attr_alive_{layer}")
                   for layer in wcam.layers}

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """All means; reset them when an epoch begins."""
    return [*self.means.values(), *self._alive.values()]

  def overall(self, match: Match) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Averages over the layers by their weights.

    Args:
      match: of a batch.

    Returns:
      Distance, agreement, and the weight of the agreement, each `[batch]`.
    """
    distance, agreement, valid = (
        tf.reduce_sum(values * tf.constant(self._shares, values.dtype), axis=-1)
        for values in (
            match.distance, match.agreement * match.valid, match.valid))
    return distance, tf.math.divide_no_nan(agreement, valid), valid

  def update(self, match: Match, attr_loss: tf.Tensor) -> None:
    """Adds a batch to the means.

    Args:
      match: the comparison of its maps.
      attr_loss: the maps' term of the loss, a scalar.
    """
    has_images = tf.size(match.valid) > 0  # A replica may have none.
    self.means["attr_loss"].update_state(
        attr_loss, tf.cast(has_images, tf.float32))
    _, agreement, valid = self.overall(match)
    _, dead, _ = self.overall(match._replace(agreement=match.dead))
    self._update("", agreement, dead, valid)
    for i, layer in enumerate(self._layers):
      of_layer = Match(*(figure[:, i] for figure in match))
      self._alive[layer].update_state(of_layer.valid, of_layer.explained)
      if len(self._layers) > 1:
        self._update(f"_{layer}", of_layer.agreement, of_layer.dead,
                     of_layer.valid)

  def warnings(self) -> list[tuple[str, str]]:
    """Returns warnings from the means since their reset.

    Returns:
      For each problem its kind, by which to warn only once, and a sentence.
    """
    messages = []
    for layer, alive in self._alive.items():
      dead = self.means[f"attr_dead_{layer}" if len(self._layers) > 1
                        else "attr_dead"]
      if _number(alive.count) and not float(alive.result()):
        messages.append((
            f"teacher {layer}",
            f"the teacher's maps at layer {layer!r} are all zero on every "
            "picture, so that nothing is matched there; choose another layer, "
            "another target, or method='ewa'."))
      elif _number(dead.count) and float(dead.result()) >= DEAD:
        messages.append((
            f"student {layer}",
            f"{float(dead.result()):.0%} of the student's maps at layer "
            f"{layer!r} are all zero, and a dead map has no gradient to come "
            "back by; lower the learning rate, compress less at once, or begin "
            "with method='ewa'."))
    return messages

  def _update(self, suffix, agreement, dead, valid) -> None:
    self.means[f"attr_agreement{suffix}"].update_state(agreement, valid)
    self.means[f"attr_dead{suffix}"].update_state(dead, valid)


def _number(variable: tf.Variable) -> float:
  """Reads a variable; each replica may hold a share of it."""
  return float(tf.convert_to_tensor(variable))
