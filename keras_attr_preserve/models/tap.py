"""Reads features and scores of a model while it runs, wrapped or not.

A `Tap` runs a model once and returns three things: the features of chosen
layers, the logits before the head's softmax or sigmoid, and the model's output.
`sensitivities` gives the gradient of the logits by the features.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from keras_attr_preserve.compat import (
  at_least_float32,
  check_keras,
  keras,
  tf,
)
from keras_attr_preserve.models.augmentation import Augmentation
from keras_attr_preserve.models.batch_statistics import (
  StillStatistics,
  still_statistics,
)
from keras_attr_preserve.models.float_images import FloatImages
from keras_attr_preserve.models.gradient_rules import (
  SENSITIVITY_RULES,
  gradient_rules,
)
from keras_attr_preserve.models.inner_functions import InnerFunctions
from keras_attr_preserve.models.inputs import ImageInput, model_input
from keras_attr_preserve.models.layer_override import CallSwap
from keras_attr_preserve.models.layers import core_of, layer_output, locate
from keras_attr_preserve.models.logits import find_head

__all__ = [
    "Tap",
    "Tapped",
    "feature_gradients",
    "sensitivities",
    "watch",
]


class Tapped(NamedTuple):
  """The results of one forward pass.

  Attributes:
    features: `[batch, height, width, channels]` for each chosen layer.
    logits: `[batch, classes]`, float, before the head's softmax or sigmoid.
    output: the model's own output, for its losses and metrics.
  """

  features: list[tf.Tensor]
  logits: tf.Tensor
  output: Any

  def split(self, count: int) -> tuple["Tapped", list[tf.Tensor]]:
    """Keeps the first `count` layers; returns the other features separately."""
    return (self._replace(features=self.features[:count]),
            self.features[count:])


class Tap:
  """Runs a model and reads features and logits on the way.

  The tap uses the model's own layers: it copies and adds nothing. One call is
  one forward pass, as the pruning wrappers need.

  The model may be Functional or Sequential, and may hold such models as layers.
  It may also be a subclass that holds one such model and returns its output.

  Attributes:
    model: the model.
    layers: the names of the chosen layers.
    core: the graph of layers that makes the output, usually the model itself.
    classes: the number of scores.
    shapes: of each layer's features, `(None, height, width, channels)`.
    gives_logits: whether the model's output is the logits, without a softmax.
  """

  def __init__(
      self,
      model: keras.Model,
      layers: Sequence[str] = (),
      output: str | None = None,
      *,
      augmented: bool = False,
      runs: bool = True,
  ):
    """Finds the layers and the logits to read.

    Args:
      model: a built `tf_keras` model.
      layers: names of layers with a spatial map, as in the unwrapped model.
      output: the name of the output with the class scores, `[batch, classes]`;
        needed where the model has several outputs.
      augmented: whether calls skip the model's own random layers. Calls then
        take the output of `augment`, so that another model can use it too.
      runs: whether the calls run in TensorFlow; False where they are only
        traced, for the converter.

    Raises:
      TypeError, ValueError: no such model, layer or output; or `augmented` is
        True and the random layers do not come first.
    """
    self.model = check_keras(model)
    self.layers = tuple(layers)
    self.core = core = core_of(model)
    self._head = find_head(core, output)
    self.classes = self._head.classes
    places = [locate(model, name) for name in layers]
    self._tapped_layers = [layer for _, layer in places]
    reads: dict[keras.Model, dict[str, Any]] = {core: {}}
    self.shapes = []
    for name, (graph, layer) in zip(layers, places):
      features = layer_output(graph, layer)
      reads.setdefault(graph, {})[name] = features
      self.shapes.append(tuple(features.shape))
    reads.setdefault(self._head.graph, {})[_LOGITS] = self._head.tensor
    self._augmentation = Augmentation(model, core) if augmented else None
    self._float_images = FloatImages(model)
    self._statistics = StillStatistics(model)
    self._functions = InnerFunctions(model, runs=runs)
    self._readers = [
        _Reader(graph, tensors) for graph, tensors in reads.items()]
    self.gives_logits = self._head.is_output

  @property
  def augments(self) -> bool:
    """Whether calls skip random layers of the model."""
    return bool(self._augmentation)

  @property
  def input(self) -> ImageInput:
    """The model's input.

    Raises:
      ValueError: the model takes several inputs.
    """
    return model_input(self.model)

  @property
  def no_gradient(self) -> str:
    """A phrase that says why no gradient reaches the images; "" if one does."""
    return self._float_images.reason

  def floats(self, images: Any) -> Any:
    """Turns integer images into floats, so that they can have a gradient.

    Args:
      images: the model's images.
    """
    return self._float_images.of(images)

  def augment(self, images: Any, training: bool) -> Any:
    """Runs the model's own random layers on images.

    Args:
      images: the model's images.
      training: as in Keras; False leaves the images unchanged.
    """
    if self._augmentation is None:
      return images
    return self._augmentation(images, training)

  def __call__(
      self, images: Any, training: bool = False,
      tape: tf.GradientTape | None = None,
      watched: int | None = None) -> Tapped:
    """Runs the model once.

    Args:
      images: the model's images.
      training: as in Keras.
      tape: a recording tape that shall watch the features. A tape that watches
        nothing else (`watch_accessed_variables=False`) records only the layers
        behind the features, even in a frozen model.
      watched: how many of the first layers the tape watches; None for all.

    Returns:
      The features, logits and output.

    Raises:
      ValueError: the model runs its inner model more than once, or computes
        something after it.
    """
    with contextlib.ExitStack() as stack:
      if self._augmentation is not None:
        stack.enter_context(self._augmentation.done())
      if training:
        stack.enter_context(self._statistics.on())
      stack.enter_context(self._functions.in_place())
      if self._head.swap is not None:
        stack.enter_context(self._head.swap.on())
      for reader in self._readers[1:]:
        stack.enter_context(reader.listening())
      for place, layer in enumerate(self._tapped_layers):
        told = None if place >= (
            len(self.layers) if watched is None else watched) else tape
        stack.enter_context(_apart(layer, images, told))
      core = self._readers[0]
      if core.graph is not self.model:
        stack.enter_context(core.listening())
      # Outside all other swaps, because it makes their inputs.
      stack.enter_context(self._float_images.flowing(images))
      if core.graph is self.model:
        output = core.run(images, training)
      else:
        output = self.model(images, training=training)
        self._check_output(output, core.output)
    values = {name: tensor for reader in self._readers
             for name, tensor in reader.found.items()}
    return Tapped([values[name] for name in self.layers],
                  self._head.logits(values[_LOGITS]), output)

  def _check_output(self, output: Any, inner: Any) -> None:
    given = {id(tensor) for tensor in tf.nest.flatten(output)}
    if any(id(tensor) not in given for tensor in tf.nest.flatten(inner)):
      raise ValueError(
          f"model {self.model.name!r} computes something after the model "
          f"{self._readers[0].graph.name!r} it holds, so that its class scores "
          "cannot be traced to a layer; move that into the inner model.")


class _Reader:
  """Runs a graph of layers with some of its tensors as additional outputs.

  The outer model runs a nested graph. While `listening`, the reader replaces
  the graph's `call`. Replicas run in threads, and each sees its own values.
  """

  def __init__(self, graph: keras.Model, tensors: dict[str, Any]):
    self.graph = graph
    self._names = list(tensors)
    # `add_loss` on a model's own tensors makes a layer without a successor.
    # It becomes an output, so that its loss is computed.
    added = [layer.get_output_at(0) for layer in graph.layers
             if type(layer).__name__ in ("AddLoss", "AddMetric")]
    self._wide = keras.Model(
        graph.input, [*graph.outputs, *tensors.values(), *added])
    self._seen = threading.local()
    self._swap = CallSwap(graph, self._in_place_of)

  @property
  def found(self) -> dict[str, tf.Tensor]:
    """The tensors of this thread's last run, by name."""
    runs = self._seen.runs
    if len(runs) != 1:
      raise ValueError(
          f"model: it runs the model {self.graph.name!r} that it holds "
          f"{len(runs)} times; a map needs it to run once.")
    return dict(zip(self._names, runs[0][1]))

  @property
  def output(self) -> Any:
    """The output of this thread's last run."""
    return self._seen.runs[-1][0] if self._seen.runs else None

  def run(self, images: Any, training: bool | None) -> Any:
    """Runs the graph, keeps the tensors and returns the graph's output."""
    self._seen.runs = []
    return self._call(images, training)

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Reads the graph's tensors inside the block."""
    self._seen.runs = []
    with self._swap.on():
      yield

  def _in_place_of(self, own_call: Any, *args: Any, **settings: Any) -> Any:
    del own_call
    return self._call(*args, **settings)

  def _call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    outputs = tf.nest.flatten(
        self._wide(inputs, training=training, mask=mask))
    count = len(self.graph.outputs)
    output = tf.nest.pack_sequence_as(self.graph.output, outputs[:count])
    self._seen.runs.append((output, outputs[count:count + len(self._names)]))
    return output


@contextlib.contextmanager
def _apart(
    layer: keras.layers.Layer, images: Any, tape: tf.GradientTape | None
) -> Iterator[None]:
  """Makes a layer's output a separate tensor and watches it on the tape.

  A layer such as a linear Activation returns its own input tensor. Other layers
  may read that tensor too, and their gradients are not the layer's.
  """
  def call(own_call: Any, *args: Any, **settings: Any) -> Any:
    inputs = {id(tensor) for tensor in tf.nest.flatten([args, settings])}
    outputs = tf.nest.map_structure(
        lambda tensor: tf.identity(tensor) if id(tensor) in inputs else tensor,
        own_call(*args, **settings))
    if tape is not None:
      tape.watch(outputs)
    return outputs

  if not isinstance(layer, keras.layers.InputLayer):
    with CallSwap(layer, call).on():
      yield
    return
  if tape is not None:  # The layer computes nothing.
    watch(tape, images)
  yield


def watch(tape: tf.GradientTape, images: Any) -> None:
  """Watches the images, so that the tape records frozen models too."""
  tape.watch([tensor for tensor in tf.nest.flatten(images)
              if tensor.dtype.is_floating])


def sensitivities(
    tape: tf.GradientTape, tapped: Tapped, seed: tf.Tensor) -> list[tf.Tensor]:
  """Sums the gradient of a score over each feature map.

      a_c = sum_{h,w} d(seed . logits) / dA_c

  Args:
    tape: as for `feature_gradients`.
    tapped: as for `feature_gradients`.
    seed: as for `feature_gradients`.

  Returns:
    For each layer `[batch, 1, 1, channels]`, in the dtype of its features, half
    precision cast up.

  Raises:
    ValueError: the logits do not depend on some layer.
  """
  return [tf.reduce_sum(at_least_float32(gradient), [1, 2], keepdims=True)
          for gradient in feature_gradients(tape, tapped, seed)]


def feature_gradients(
    tape: tf.GradientTape, tapped: Tapped, seed: tf.Tensor) -> list[tf.Tensor]:
  """Differentiates a score by each feature map.

  The gradient passes through quantizers, even where a quantizer clips a score.
  An outer tape can differentiate it (see `SENSITIVITY_RULES`). It takes batch
  statistics as constants (see `batch_statistics.py`).

  Args:
    tape: the tape that recorded the tap's call; persistent for several calls.
    tapped: the result of that call.
    seed: `[batch, classes]`, the score as a weighted sum of logits: one-hot for
      one class.

  Returns:
    For each layer a gradient of its features' shape and dtype.

  Raises:
    ValueError: the logits do not depend on some layer.
  """
  with gradient_rules(SENSITIVITY_RULES), still_statistics():
    gradients = tape.gradient(
        tapped.logits, tapped.features,
        output_gradients=tf.cast(seed, tapped.logits.dtype))
  if any(gradient is None for gradient in gradients):
    raise ValueError(
        "layer: the class scores do not depend on one of the chosen layers "
        "through differentiable operations.")
  return gradients


_LOGITS = "logits of the head"  # A key that is no layer's name.
