"""Finds the fewest operators to keep in floats for an accurate map."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from keras_attr_preserve.export.conversion.feature_maps import FeatureMaps
from keras_attr_preserve.export.conversion.layer_quantizer import (
    LayerQuantizer,
    Step,
)

__all__ = ["Search", "Trial"]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A choice of operators to keep in floats, and its result.

  Attributes:
    kept: the layers kept in floats, in the order they run; of fused layers the
      last.
    agreement: the agreement of the features' maps, on the images that serve to
      choose.
    held_out: the same on images used neither for the ranges nor for the choice.
    bytes: how many bytes the features' file has more than with nothing kept.
    nodes: the operators' names in the file.
  """

  kept: tuple[str, ...]
  agreement: float
  held_out: float
  bytes: int
  nodes: frozenset[str]


class Search:
  """Searches for the operators to keep.

  Each operator is first quantized alone, with all others kept. The map's
  distance is then the operator's harm. Harms measured this way hardly depend on
  each other. The opposite way, keeping a single operator, shows nothing: the
  operators that share its tensors are still quantized.

  Operators are kept in the order of harm, or of harm for each byte, until the
  agreement suffices. Then operators that are not needed are given up again.

  Attributes:
    harms: for each step that the features depend on, `1 - cosine` where it
      alone is quantized, mean over the images that serve to choose.
    trials: the choices that were tried, the first with nothing kept.
  """

  def __init__(
      self, quantizer: LayerQuantizer, choosing: FeatureMaps,
      held_out: FeatureMaps, statistic: Callable[[np.ndarray], float]):
    """Stores the arguments and tries with nothing kept.

    Args:
      quantizer: of a model with an output called "features".
      choosing: images to choose by.
      held_out: images to judge by.
      statistic: reduces the cosines of all images to one number.
    """
    self._quantizer, self._statistic = quantizer, statistic
    self._choosing, self._held_out = choosing, held_out
    self._size = len(quantizer.content())
    self._tried: dict[frozenset[str], Trial] = {}
    self.harms: dict[Step, float] = {}
    self._try(())

  @property
  def trials(self) -> list[Trial]:
    return list(self._tried.values())

  def run(self, require: float) -> Trial | None:
    """Searches; later calls reuse earlier trials.

    Args:
      require: the least value of the statistic.

    Returns:
      The smallest trial that reaches `require` on both halves of the images;
      None where even floats throughout do not.
    """
    self._require = require
    if self._holds(()):
      return self._try(())
    steps = _before(self._quantizer.steps, "features")
    every = [step.node for step in steps]
    for step in steps if not self.harms else ():
      content = self._quantizer.content(set(every) - {step.node})
      cosines = self._choosing.cosines(content)
      self.harms[step] = float(np.nanmean(1 - cosines))
    if not self._holds(every):
      return None
    choices = []
    for price in (lambda step: 1, lambda step: step.weights + 64):
      order = sorted(steps, key=lambda step: -self.harms[step] / price(step))
      choices.append(self._pruned(self._shortest(
          [step.node for step in order])))
    return min((self._try(nodes) for nodes in choices),
               key=lambda trial: trial.bytes)

  def best(self, max_bytes: float = np.inf) -> str:
    """Describes the best trial within a number of bytes."""
    trial = max((trial for trial in self.trials if trial.bytes <= max_bytes),
                key=lambda trial: min(trial.agreement, trial.held_out))
    return (f"the best features give {trial.agreement:.4f}, "
            f"{trial.held_out:.4f} "
            f"on the images held out, with {len(trial.kept)} layers in floats "
            f"for {trial.bytes} bytes")

  def _shortest(self, order: Sequence[str]) -> list[str]:
    """Returns the shortest start of an order that suffices."""
    low, high = 0, len(order)
    while high - low > 1:
      middle = (low + high) // 2
      if self._holds(order[:middle]):
        high = middle
      else:
        low = middle
    return list(order[:high])

  def _pruned(self, kept: list[str]) -> list[str]:
    """Drops nodes that are not needed, the heaviest first."""
    weights = {step.node: step.weights for step in self._quantizer.steps}
    for node in sorted(kept, key=weights.get, reverse=True):
      fewer = [name for name in kept if name != node]
      size = self._try(kept).bytes
      if self._holds(fewer) and self._try(fewer).bytes <= size:
        kept = fewer
    return kept

  def _holds(self, kept: Iterable[str]) -> bool:
    trial = self._try(kept)
    return min(trial.agreement, trial.held_out) >= self._require

  def _try(self, kept: Iterable[str]) -> Trial:
    nodes = frozenset(kept)
    if nodes not in self._tried:
      content = self._quantizer.content(nodes)
      self._tried[nodes] = Trial(
          tuple(step.layer for step in self._quantizer.steps
                if step.node in nodes),
          float(self._statistic(self._choosing.cosines(content))),
          float(self._statistic(self._held_out.cosines(content))),
          len(content) - self._size, nodes)
    return self._tried[nodes]


def _before(steps: Sequence[Step], layer: str) -> list[Step]:
  """Returns the steps that an output depends on, itself included."""
  by_node = {step.node: step for step in steps}
  todo = [step.node for step in steps if step.layer == layer]
  needed = set()
  while todo:
    node = todo.pop()
    if node not in needed:
      needed.add(node)
      todo += by_node[node].inputs
  return [step for step in steps if step.node in needed]
