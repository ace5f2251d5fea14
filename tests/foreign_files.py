"""Files as others make them: converted by TensorFlow alone, or changed."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

import keras_attr_preserve as kap
from keras_attr_preserve.export.third_party.explainer import (
    ForeignExplainer,
    explainer,
)
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared

MODES = ("float32", "float16", "dynamic", "int8", "uint8", "int16x8")
INTEGERS = ("int8", "uint8", "int16x8")


def convert(
    net: keras.Model,
    mode: str = "float32",
    *,
    batch: int | None = 1,
    samples: np.ndarray | None = None,
) -> bytes:
  """Converts a model by TensorFlow alone, with no signature.

  Args:
    net: any of tf_keras, with one or several outputs.
    mode: one of MODES; "uint8" has inputs and outputs of that type, "int16x8"
      floats.
    batch: the declared one; None leaves it open.
    samples: representative images.
  """
  shape = [batch, *net.inputs[0].shape[1:]]
  serve = tf.function(net).get_concrete_function(
      tf.TensorSpec(shape, tf.float32, name="images"))
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
      [serve], helpers.variables_of(serve))
  if mode != "float32":
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if mode == "float16":
    converter.target_spec.supported_types = [tf.float16]
  if mode in INTEGERS:
    samples = helpers.calibration() if samples is None else samples
    count = batch or 1
    converter.representative_dataset = lambda: (
        [samples[i:i + count]] for i in range(0, len(samples), count))
  if mode in ("int8", "uint8"):
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.as_dtype(mode)
    converter.inference_output_type = tf.as_dtype(mode)
  if mode == "int16x8":
    # Private in name only: TensorFlow's documents give no other road.
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet
        .EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
  return helpers.foreign(converter.convert())


@shared
def converted(tail: str = "gap", mode: str = "float32", **settings) -> bytes:
  """Converts `helpers.net` once for all tests."""
  batch = settings.pop("batch", 1)
  return convert(helpers.net(tail, **settings), mode, batch=batch)


def opened(tail="gap", mode="float32", *, content=None, net=None, layer="act",
           method="swa", **settings) -> ForeignExplainer:
  """Opens a file by its teacher, on 16 images."""
  return explainer(
      content or converted(tail, mode),
      teacher=net or helpers.net(tail), images=helpers.images(16, seed=3),
      wcam=kap.WCAM(layer, method=method), **settings)


def edited(content: bytes, change: Callable[[schema.ModelT], None]) -> bytes:
  """Changes a parsed file and writes it again."""
  model = helpers.parsed(content)
  change(model)
  return helpers.packed(model)


def renamed(content: bytes) -> bytes:
  """Takes every tensor's name away."""
  def change(model):
    for graph in model.subgraphs:
      for number, tensor in enumerate(graph.tensors):
        tensor.name = f"t{(7 * number) % len(graph.tensors)}"
  return edited(content, change)


def shuffled(content: bytes, seed: int = 0) -> bytes:
  """Numbers the tensors of the first subgraph anew."""
  def change(model):
    graph = model.subgraphs[0]
    order = np.random.default_rng(seed).permutation(len(graph.tensors))
    graph.tensors = [graph.tensors[i] for i in order]
    places = np.argsort(order)

    def moved(numbers):
      return np.array([places[i] if i >= 0 else i for i in numbers], np.int32)
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for operator in graph.operators:
      operator.inputs = moved(operator.inputs)
      operator.outputs = moved(operator.outputs)
  return edited(content, change)


def preserved(content: bytes, image: np.ndarray) -> dict[int, np.ndarray]:
  """Reads every tensor of the first subgraph as LiteRT itself keeps them.

  Args:
    content: a file of one subgraph.
    image: one, in the numbers that the file takes.
  """
  interpreter = litert.Interpreter(
      model_content=content, experimental_preserve_all_tensors=True,
      experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF)
  interpreter.allocate_tensors()
  interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
  interpreter.invoke()
  graph = helpers.parsed(content).subgraphs[0]
  return {int(index): interpreter.get_tensor(int(index))
          for operator in graph.operators for index in operator.outputs}


def twins(similar: float, seed: int = 0) -> keras.Model:
  """Builds a model of two branches of one shape, told apart by `similar`.

  Args:
    similar: relative distance of the weights of "right" from "left".
    seed: of the weights.
  """
  layers = keras.layers
  inputs = keras.Input((helpers.SIZE, helpers.SIZE, 2))
  x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(
      inputs)
  left = layers.Conv2D(8, 3, padding="same", activation="relu", name="left")(x)
  right = layers.Conv2D(
      8, 3, padding="same", activation="relu", name="right")(x)
  x = layers.Concatenate(name="both")([left, right])
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  model = tiny.shake(
      keras.Model(inputs, layers.Dense(3, name="logits")(x), name="twins"),
      seed)
  left, right = (model.get_layer(name) for name in ("left", "right"))
  noise = np.random.default_rng(seed + 1)
  for source, target in zip(left.weights, right.weights):
    value = source.numpy()
    target.assign(value * (1 + similar * noise.normal(size=value.shape)))
  return model


def with_background(net: keras.Model, first: bool) -> keras.Model:
  """Copies a model and gives it one class more, before or behind the others."""
  pool = net.get_layer("pool").output
  wide = keras.Model(net.input, keras.layers.Softmax()(keras.layers.Dense(
      net.output_shape[-1] + 1, name="wide")(pool)))
  kernel, bias = net.get_layer("logits").get_weights()
  extra = np.random.default_rng(0).normal(size=(len(kernel), 1))
  kernels = ([extra, kernel] if first else [kernel, extra])
  ends = ([[0.5], bias] if first else [bias, [0.5]])
  wide.get_layer("wide").set_weights(
      [np.concatenate(kernels, 1), np.concatenate(ends)])
  return wide


def permuted(net: keras.Model, seed: int = 0) -> keras.Model:
  """Copies a "gap" model with its channels in another order.

  It computes the same function by other features, as if trained again.
  """
  copy = tiny.copy_of(net)
  order = np.random.default_rng(seed).permutation(
      copy.get_layer("act").output_shape[-1])
  for name, axis in (("conv", -1), ("bn", 0), ("logits", 0)):
    layer, bias = copy.get_layer(name), []
    weights = layer.get_weights()
    if name == "logits":
      weights, bias = weights[:1], weights[1:]
    layer.set_weights(
        [np.take(weight, order, axis) for weight in weights] + bias)
  return copy


def rescaled(net: keras.Model) -> keras.Model:
  """Puts x / 127.5 - 1 before a model, for files that take 0..255."""
  inputs = keras.Input(net.input_shape[1:])
  return keras.Model(inputs, net(inputs / 127.5 - 1))
