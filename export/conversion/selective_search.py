"""Finding the fewest operators to keep in floats for a map to hold."""

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
  """One choice of what to keep, and what came of it.

  Attributes:
    kept: the layers kept in floats, in the order of computing; of fused ones
      the last.
    agreement: of the maps that the features lead to, on the images that the
      choice is made by.
    held_out: the same on images that neither ranges nor choice have seen.
    bytes: how many more the features' file has than with nothing kept.
    nodes: the operators' names in the file.
  """

  kept: tuple[str, ...]
  agreement: float
  held_out: float
  bytes: int
  nodes: frozenset[str]


class Search:
  """Tries what to keep.

  Each operator is first quantized alone, all the others kept: what that does to
  the map is its harm. Seen from that side the harms hardly depend on each
  other, while in a file where all is quantized to spare one operator shows
  nothing as long as its neighbours, which take or make the same tensor, are not
  spared. The operators are kept in the order of harm, or of harm for each byte,
  until the map holds; then those are given up again that it holds without.

  Attributes:
    harms: for each step that the features depend on `1 - cosine`, mean over the
      images the choice is made by, where it alone is quantized.
    trials: what was tried, the first with nothing kept.
  """

  def __init__(
      self, quantizer: LayerQuantizer, choosing: FeatureMaps,
      held_out: FeatureMaps, statistic: Callable[[np.ndarray], float]):
    """Keeps what is needed and tries to keep nothing.

    Args:
      quantizer: of the model, one of whose outputs is called "features".
      choosing: images to choose by.
      held_out: images to judge by.
      statistic: what to make of the cosines of all images.
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
    """Searches; asked again, it remembers what was tried.

    Args:
      require: the least value of the statistic.

    Returns:
      The smallest file that reaches what is required on both halves of the
      images; None where even floats throughout do not.
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
    found = []
    for price in (lambda step: 1, lambda step: step.weights + 64):
      order = sorted(steps, key=lambda step: -self.harms[step] / price(step))
      found.append(self._pruned(self._shortest(
          [step.node for step in order])))
    return min((self._try(one) for one in found), key=lambda one: one.bytes)

  def best(self, max_bytes: float = np.inf) -> str:
    """Says the best that was tried within a number of bytes."""
    one = max((one for one in self.trials if one.bytes <= max_bytes),
              key=lambda one: min(one.agreement, one.held_out))
    return (f"the best features give {one.agreement:.4f}, {one.held_out:.4f} "
            f"on the images held out, with {len(one.kept)} layers in floats "
            f"for {one.bytes} bytes")

  def _shortest(self, order: Sequence[str]) -> list[str]:
    """The first operators of an order that suffice."""
    low, high = 0, len(order)
    while high - low > 1:
      middle = (low + high) // 2
      if self._holds(order[:middle]):
        high = middle
      else:
        low = middle
    return list(order[:high])

  def _pruned(self, kept: list[str]) -> list[str]:
    """Gives up what is not needed, the heaviest first."""
    weights = {step.node: step.weights for step in self._quantizer.steps}
    for node in sorted(kept, key=weights.get, reverse=True):
      fewer = [one for one in kept if one != node]
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
  """The steps that an output depends on, itself included."""
  by_node = {step.node: step for step in steps}
  todo = [step.node for step in steps if step.layer == layer]
  found = set()
  while todo:
    node = todo.pop()
    if node not in found:
      found.add(node)
      todo += by_node[node].inputs
  return [step for step in steps if step.node in found]
