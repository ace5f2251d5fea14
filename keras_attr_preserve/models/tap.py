"""Reading features and scores out of a model while it runs, wrapped or not.

A `Tap` runs a model once and hands back the features of the layers asked for,
the logits (before the softmax or sigmoid of the head) and the model's own
output. `sensitivities` says how the logits react to those features.
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
  """What one forward pass gives.

  Attributes:
    features: one `[batch, height, width, channels]` per layer asked for.
    logits: `[batch, classes]`, float, before the head's softmax or sigmoid.
    output: the model's own output, for its losses and metrics.
  """

  features: list[tf.Tensor]
  logits: tf.Tensor
  output: Any

  def split(self, count: int) -> tuple["Tapped", list[tf.Tensor]]:
    """The same with the first layers alone, and the others' features."""
    return (self._replace(features=self.features[:count]),
            self.features[count:])


class Tap:
  """Runs a model and reads features and logits on the way.

  The layers of the model are used where they are: nothing is copied or added,
  and one call is one forward pass, as the wrappers of pruning need.

  The model may be Functional or Sequential, hold others of that kind as layers,
  or be a subclass whose output is that of the one such model it holds.

  Attributes:
    model: the model.
    layers: the names asked for.
    core: the graph of layers that makes its output: itself, for the most part.
    classes: the number of scores it gives.
    shapes: of each layer's features, `(None, height, width, channels)`.
    gives_logits: whether the model's output is the logits, no softmax between.
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
    """Finds what to read.

    Args:
      model: a built `tf_keras` model.
      layers: names of layers with a spatial map, as in the unwrapped model.
      output: which output is the class scores, `[batch, classes]`; needed where
        there are several.
      augmented: calls get what `augment` gives, and leave the model's own
        random layers out, so that another model can be shown the same.
      runs: whether what it computes runs in TensorFlow; False where calls are
        only traced, for the converter.

    Raises:
      TypeError, ValueError: no such model, layer or output; or random layers
        that do not come first, where they are to be left out.
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
    """Whether it leaves random layers of the model out."""
    return bool(self._augmentation)

  @property
  def input(self) -> ImageInput:
    """What the model takes.

    Raises:
      ValueError: it takes several inputs.
    """
    return model_input(self.model)

  @property
  def no_gradient(self) -> str:
    """Why no gradient reaches the images, a phrase; "" where one does."""
    return self._float_images.reason

  def floats(self, images: Any) -> Any:
    """Gives images as the model is to be differentiated: integers as floats.

    Args:
      images: what the model takes.
    """
    return self._float_images.of(images)

  def augment(self, images: Any, training: bool) -> Any:
    """Gives what the model's own random layers make of images.

    Args:
      images: what the model takes.
      training: as in Keras; False leaves them as they are.
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
      images: what the model takes.
      training: as in Keras.
      tape: is to watch the features, and is recording. One that watches nothing
        else (`watch_accessed_variables=False`) records the model's tail alone,
        also a frozen one's.
      watched: of how many of the layers, the first ones; None for all.

    Returns:
      The features, logits and output.

    Raises:
      ValueError: the model runs one that it holds more than once, or computes
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
      # Around all other swaps: it gives them what they take.
      stack.enter_context(self._float_images.flowing(images))
      if core.graph is self.model:
        output = core.run(images, training)
      else:
        output = self.model(images, training=training)
        self._check_output(output, core.output)
    found = {name: tensor for reader in self._readers
             for name, tensor in reader.found.items()}
    return Tapped([found[name] for name in self.layers],
                  self._head.logits(found[_LOGITS]), output)

  def _check_output(self, output: Any, inner: Any) -> None:
    given = {id(one) for one in tf.nest.flatten(output)}
    if any(id(one) not in given for one in tf.nest.flatten(inner)):
      raise ValueError(
          f"model {self.model.name!r} computes something after the model "
          f"{self._readers[0].graph.name!r} it holds, so that its class scores "
          "cannot be traced to a layer; move that into the inner model.")


class _Reader:
  """Runs a graph of layers with some of its tensors as outputs besides.

  A nested graph is run by the model around it. While `listening`, its `call` is
  the reader's. Replicas run in threads, and each sees what it read itself.
  """

  def __init__(self, graph: keras.Model, tensors: dict[str, Any]):
    self.graph = graph
    self._names = list(tensors)
    # What `add_loss` on a model's own tensors made is a layer without a
    # successor; it runs along, so that its loss is there.
    added = [layer.get_output_at(0) for layer in graph.layers
             if type(layer).__name__ in ("AddLoss", "AddMetric")]
    self._wide = keras.Model(
        graph.input, [*graph.outputs, *tensors.values(), *added])
    self._seen = threading.local()
    self._swap = CallSwap(graph, self._in_place_of)

  @property
  def found(self) -> dict[str, tf.Tensor]:
    """What this thread's last run read, by name."""
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
    """Runs the graph and keeps what is read; returns the graph's output."""
    self._seen.runs = []
    return self._call(images, training)

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Reads what the graph computes inside the block."""
    self._seen.runs = []
    with self._swap.on():
      yield

  def _in_place_of(self, own_call: Any, *args: Any, **settings: Any) -> Any:
    del own_call
    return self._call(*args, **settings)

  def _call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    outputs = tf.nest.flatten(
        self._wide(inputs, training=training, mask=mask))
    own = len(self.graph.outputs)
    output = tf.nest.pack_sequence_as(self.graph.output, outputs[:own])
    self._seen.runs.append((output, outputs[own:own + len(self._names)]))
    return output


@contextlib.contextmanager
def _apart(
    layer: keras.layers.Layer, images: Any, tape: tf.GradientTape | None
) -> Iterator[None]:
  """Gives a layer's output a tensor of its own, and a tape that watches it.

  A layer that hands on its input, such as a linear Activation, gives the
  very tensor that others take as well: their paths are not the layer's.
  """
  def call(own_call: Any, *args: Any, **settings: Any) -> Any:
    inputs = {id(one) for one in tf.nest.flatten([args, settings])}
    outputs = tf.nest.map_structure(
        lambda one: tf.identity(one) if id(one) in inputs else one,
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
  """Records from the images on, so that frozen nets are recorded too."""
  tape.watch([one for one in tf.nest.flatten(images)
              if one.dtype.is_floating])


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

  Quantizers are transparent to it: it is alive where one clips a score, and an
  outer tape can differentiate it (see `SENSITIVITY_RULES`). The statistics of a
  batch are constants to it (see `batch_statistics.py`).

  Args:
    tape: the tape that recorded the tap's call; persistent to ask it again.
    tapped: what that call gave.
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
