"""Whether maps depend on what a net has learned."""

from collections.abc import Callable, Iterator

import numpy as np

from keras_attr_preserve.compat import check_model, clone_model, keras
from keras_attr_preserve.evaluation.agreement import agreement

__all__ = ["cascading_randomization"]


def cascading_randomization(
    model: keras.Model,
    images: np.ndarray,
    explain: Callable[[keras.Model, np.ndarray], np.ndarray],
    *,
    score: str = "spearman",
    magnitudes: bool = True,
    seed: int = 0,
) -> dict[str, np.ndarray]:
  """Randomizes a net's layers one after the other, from the scores down.

  The maps of a method that shows what the net has learned part from the
  original ones; those of an edge detector stay.

  Args:
    model: a built `tf_keras` model, but for one wrapped for quantization-aware
      training, which cannot be copied; a copy is randomized. Each weight gets
      normally distributed values of its own mean and spread, a variance their
      magnitude.
    images: `[images, height, width, channels]`.
    explain: `(model, images) -> maps [images, height, width]`; name the class
      in it, since a random net's top class is another.
    score: the agreement to report; see `agreement`.
    magnitudes: whether maps are compared without their signs.
    seed: of the weights.

  Returns:
    For each layer with weights, from the last, the agreement of the maps, once
    it and all behind it are random, with the original ones, `[images]`; those
    of a nested model as "model/layer". First of all "none", that of the copy as
    it is.

  Raises:
    TypeError, ValueError: the model is not as above.

  References:
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, section 3.
  """
  check_model(model)
  copy = clone_model(model)
  rng = np.random.default_rng(seed)

  def maps(net):
    found = np.asarray(explain(net, images))
    return np.abs(found) if magnitudes else found

  def compared():
    return agreement(reference, maps(copy), scores=(score,))[score]

  reference = maps(model)
  found = {"none": compared()}
  for name, layer in reversed(list(_layers(copy))):
    if any(weight.dtype.is_floating for weight in layer.weights):
      layer.set_weights([_drawn(rng, weight.name, value) for weight, value
                         in zip(layer.weights, layer.get_weights())])
      found[name] = compared()
  return found


def _layers(
    model: keras.Model, path: str = "",
) -> Iterator[tuple[str, keras.layers.Layer]]:
  for layer in model.layers:
    if isinstance(layer, keras.Model):
      yield from _layers(layer, f"{path}{layer.name}/")
    else:
      yield path + layer.name, layer


def _drawn(rng, name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype.kind != "f":
    return value
  drawn = rng.normal(value.mean(), value.std() + 1e-8, value.shape)
  if "variance" in name:
    drawn = np.abs(drawn) + 1e-3
  return drawn.astype(value.dtype)
