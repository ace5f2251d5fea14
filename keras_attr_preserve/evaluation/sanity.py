"""Tests whether attribution maps depend on a model's trained weights."""

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
  """Randomizes a model's layers one after the other, from the last layer on.

  Maps that depend on the trained weights change. The maps of an edge detector
  stay the same.

  Args:
    model: a built `tf_keras` model. A copy of it is randomized, so it must not
      be wrapped for quantization-aware training. Each weight gets normally
      distributed values of its own mean and standard deviation; a variance gets
      their magnitudes.
    images: `[images, height, width, channels]`.
    explain: `(model, images) -> maps [images, height, width]`. It should fix
      the class, because a random model has another top class.
    score: the agreement to report; see `agreement`.
    magnitudes: whether maps are compared without their signs.
    seed: of the weights.

  Returns:
    A dict from each layer with weights, the last first, to an agreement
    `[images]`. It compares the original maps with the maps when this layer and
    all later layers are random. A layer of a nested model is named
    "model/layer". The first key is "none", for the copy without random layers.

  Raises:
    TypeError, ValueError: the model is not as above.

  References:
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, section 3.
  """
  check_model(model)
  copy = clone_model(model)
  rng = np.random.default_rng(seed)

  def maps(net):
    values = np.asarray(explain(net, images))
    return np.abs(values) if magnitudes else values

  def compared():
    return agreement(reference, maps(copy), scores=(score,))[score]

  reference = maps(model)
  agreements = {"none": compared()}
  for name, layer in reversed(list(_layers(copy))):
    if any(weight.dtype.is_floating for weight in layer.weights):
      layer.set_weights([_drawn(rng, weight.name, value) for weight, value
                         in zip(layer.weights, layer.get_weights())])
      agreements[name] = compared()
  return agreements


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
