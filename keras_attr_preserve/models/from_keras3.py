"""Converts Keras 3 models to `tf_keras`, because tfmot takes no others."""

import os
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.keras3_layers import (
    make_layer,
    make_operation,
    tensor_arguments,
)
from keras_attr_preserve.models.model_files import check_model_file, shortened

__all__ = ["from_keras3"]

_SIZE = 64  # The check uses it for sides of no fixed length.
_TOLERANCE = 1e-5  # As a share of the largest output.
_HALF_TOLERANCE = 1e-2  # Where layers compute in 8 or 11 bits of precision.
_NOISE = 10


def from_keras3(model: Any) -> keras.Model:
  """Converts a Keras 3 model to an equal `tf_keras` model.

      teacher = kap.from_keras3("classifier.keras")
      student = prune_low_magnitude(kap.clone_model(teacher), **schedule)

  The graph, the weights, the names, the trainable flags and the dtypes are
  kept. The optimizer, loss and metrics are not: compile the result. Both models
  run on the same random batch, with `training=False`, before this returns.
  Arithmetic on tensors (`x + y`, `x / 255`, `keras.ops.relu`) becomes layers.
  As in Keras 3, the `training` of `fit` overrides the `training` of a layer
  call.

  Args:
    model: a Functional or built Sequential Keras 3 model, on any backend, of
      Keras's own layers; or the path of a `.keras` or `.h5` file that Keras 3
      saved. It stays unchanged. A file is loaded in Keras's safe mode.

  Returns:
    A new, uncompiled model. On the random batch its outputs differ by at most
    1e-5 of the largest, or 1e-2 in half precision. A model that is sensitive to
    rounding may differ by ten times the effect of rounding its inputs.

  Raises:
    TypeError: the model is a `tf_keras` model already, or no model.
    ValueError: layers cannot be converted (the message names all of them), the
      model has no graph, the file cannot be loaded, or the outputs differ.
    ImportError: Keras 3 is not installed.
  """
  keras3 = _keras3()
  if isinstance(model, (str, os.PathLike)):
    model = _load(keras3, os.fspath(model))
  _check_type(keras3, model)
  config = model.get_config()
  faults = _faults(model.name, config)
  if faults:
    raise ValueError(
        f"model {model.name!r}: {len(faults)} of its layers cannot be carried "
        f"over to tf_keras: {'; '.join(faults)}. Replace each in the Keras 3 "
        "model by layers of Keras's own, or write that part with tf_keras.")
  converted = _make_model(config)
  if len(converted.weights) != len(model.weights):
    raise ValueError(
        f"model {model.name!r} has {len(model.weights)} weights, and "
        f"{len(converted.weights)} in tf_keras: a layer is called both in it "
        "and in a model nested in it, which a config does not tell. Call it at "
        "one depth.")
  _copy_weights(model, converted)
  _check_equal(keras3, model, converted)
  return converted


def _keras3() -> Any:
  try:
    import keras as keras3
  except ImportError as error:
    raise ImportError(
        "from_keras3 needs Keras 3: pip install 'keras>=3'.") from error
  if int(keras3.__version__.split(".")[0]) < 3:
    raise ImportError(
        f"from_keras3 needs Keras 3; the installed keras is "
        f"{keras3.__version__}: pip install 'keras>=3'.")
  return keras3


def _load(keras3: Any, path: str) -> Any:
  if os.path.isdir(path):
    check_model_file(path, keras3=True)  # `model.export` writes folders.
  whole = {".keras": zipfile.is_zipfile, ".h5": h5py.is_hdf5}.get(
      os.path.splitext(path)[1], lambda path: False)
  if not whole(path):
    raise ValueError(
        "model must be a Keras 3 model or the path of a .keras or .h5 file; "
        f"got {path!r}, which is none.")
  check_model_file(path, keras3=True)
  try:
    return keras3.saving.load_model(path, compile=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
        f"model {path!r} cannot be loaded by Keras 3 in safe mode, without "
        f"custom objects: {shortened(error)}") from error


def _check_type(keras3: Any, model: Any) -> None:
  if isinstance(model, keras.Model):
    raise TypeError(
        f"model {model.name!r} is a tf_keras model already: use it as it is.")
  if not isinstance(model, keras3.Model):
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise TypeError(
        f"model must be a Keras 3 model or the path of one; got {kind}.")
  if not _is_graph({"class_name": type(model).__name__,
                    "module": type(model).__module__}):
    raise ValueError(
        f"model {model.name!r} is of a class of its own, "
        f"{type(model).__name__}, whose call is code that tf_keras cannot run: "
        "build it as keras.Model(inputs, outputs) of Keras's own layers.")
  if not getattr(model, "inputs", None):
    raise ValueError(
        f"model {model.name!r} is not built: give its first layer a "
        "keras.Input.")


def _is_graph(data: dict[str, Any]) -> bool:
  """Says whether a model is Functional or Sequential, and no subclass."""
  return (data["class_name"] in ("Functional", "Sequential")
          and str(data["module"]).split(".")[0] == "keras")


def _make(data: dict[str, Any]) -> keras.layers.Layer:
  """Makes the layer of one entry of a model's config."""
  if _is_graph(data):
    return _make_model(data["config"])
  if ".ops." in str(data["module"]):
    return make_operation(data)
  return make_layer(data)


def _faults(name: str, config: dict[str, Any]) -> list[str]:
  """Says for each unsupported layer, nested or not, why it is unsupported."""
  faults = []
  for data in config["layers"]:
    inner = data["config"].get("name", data.get("name"))
    if data["class_name"] == "InputLayer":
      continue
    if _is_graph(data):
      faults += _faults(f"{name}/{inner}", data["config"])
      continue
    try:
      _make(data)
    except (TypeError, ValueError) as error:
      faults.append(f"{inner!r} ({data['class_name']}): {error}")
  return faults


def _make_model(config: dict[str, Any]) -> keras.Model:
  if "output_layers" not in config:
    return _make_sequential(config)
  layers, pending, tensors = {}, [], {}
  for data in config["layers"]:
    name = data["name"]
    if data["class_name"] == "InputLayer":
      tensors[name, 0, 0] = _make_input(data["config"])
      continue
    layers[name] = _make(data)
    pending += [(name, number, data, node)
                for number, node in enumerate(data["inbound_nodes"])]
  while pending:
    ready = [call for call in pending if all(
        tuple(tensor["keras_history"]) in tensors
        for tensor in tensor_arguments([call[3]["args"], call[3]["kwargs"]]))]
    if not ready:
      raise ValueError(
          f"model {config['name']!r}: the calls of {pending[0][0]!r} and of "
          f"{len(pending) - 1} other layers wait for each other.")
    for name, number, data, node in ready:
      output = _call(layers[name], data, node, tensors)
      for index, tensor in enumerate(tf.nest.flatten(output)):
        tensors[name, number, index] = tensor
    pending = [call for call in pending if call not in ready]
  functional = {data["name"] for data in config["layers"]
                if data["class_name"] == "Functional"}

  def tensor(reference):
    name, number, index = reference
    # Here Keras 3 also counts a Functional model's node for its own inputs,
    # which the list of nodes leaves out (checked on 3.15).
    return tensors[name, number - (name in functional), index]

  return keras.Model(
      _map(tensor, config["input_layers"]),
      _map(tensor, config["output_layers"]),
      name=config["name"], trainable=config.get("trainable", True))


def _make_sequential(config: dict[str, Any]) -> keras.Model:
  data = config["layers"]
  if data[0]["class_name"] != "InputLayer":
    raise ValueError(f"{config['name']!r} is not built")
  shape = data[0]["config"]["batch_shape"]
  return keras.Sequential(
      [keras.layers.InputLayer(
          shape[1:], shape[0], dtype=_input_dtype(data[0]["config"]),
          name=data[0]["config"]["name"]),
       *(_make(entry) for entry in data[1:])], name=config["name"])


def _make_input(config: dict[str, Any]) -> Any:
  shape = config["batch_shape"]
  return keras.Input(
      shape[1:], shape[0], config["name"], dtype=_input_dtype(config))


def _input_dtype(config: dict[str, Any]) -> str:
  dtype = config["dtype"]
  return dtype if isinstance(dtype, str) else dtype["config"]["name"]


def _call(
    layer: keras.layers.Layer, data: dict[str, Any], node: dict[str, Any],
    tensors: dict[tuple[str, int, int], Any]) -> Any:
  """Calls a layer as the Keras 3 graph does."""
  if ".ops." in str(data["module"]):
    arguments = [tensors[tuple(argument["keras_history"])]
                 for argument in tensor_arguments(node["args"])]
    return layer(arguments if len(arguments) > 1 else arguments[0])

  def fill(value):
    if isinstance(value, dict):
      if value.get("class_name") == "__keras_tensor__":
        return tensors[tuple(value["config"]["keras_history"])]
      return {key: fill(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
      return [fill(item) for item in value]
    return value

  # Keras 3 notes the `training` of the graph's construction; it has no effect.
  kwargs = {key: fill(value) for key, value in node["kwargs"].items()
            if key != "training" and value is not None}
  return layer(*fill(node["args"]), **kwargs)


def _map(function: Callable[[Any], Any], structure: Any) -> Any:
  """Applies a function to each reference [layer, node, tensor]."""
  if isinstance(structure, dict):
    return {key: _map(function, item) for key, item in structure.items()}
  if isinstance(structure[0], str):
    return function(structure)
  return [_map(function, item) for item in structure]


def _copy_weights(source: Any, target: keras.layers.Layer) -> None:
  if isinstance(target, keras.Model):
    for layer in source.layers:
      _copy_weights(layer, target.get_layer(layer.name))
    return
  source_weights = [(weight.name, tuple(weight.shape))
                    for weight in source.weights]
  target_weights = [
      (weight.name.split("/")[-1].split(":")[0], tuple(weight.shape))
      for weight in target.weights]
  # A depthwise "kernel" is tf_keras's "depthwise_kernel".
  if len(source_weights) != len(target_weights) or not all(
      weight[0].endswith(other[0]) and weight[1] == other[1]
      for weight, other in zip(target_weights, source_weights)):
    raise ValueError(
        f"model: layer {source.name!r} ({type(source).__name__}) has the "
        f"weights {source_weights} in Keras 3 and {target_weights} in "
        "tf_keras.")
  target.set_weights(source.get_weights())
  if isinstance(target, keras.layers.Normalization):
    target.finalize_state()


def _check_equal(keras3: Any, model: Any, converted: keras.Model) -> None:
  """Runs both models on one random batch."""
  references = model.get_config().get("input_layers", converted.input_names)

  def run(one, values):
    inputs = _map(lambda name: values[name if isinstance(name, str)
                                      else name[0]], references)
    return [np.float64(keras3.ops.convert_to_numpy(output)) for output in
            tf.nest.flatten(one(inputs, training=False))]

  generator = np.random.default_rng(0)
  batch = next((tensor.shape[0] for tensor in converted.inputs
                if tensor.shape[0]), 2)
  values = {name: _draw(generator, tensor, batch)
            for name, tensor in zip(converted.input_names, converted.inputs)}
  half = any(layer.compute_dtype in ("float16", "bfloat16")
             for layer in converted.submodules
             if isinstance(layer, keras.layers.Layer))
  want, got = run(model, values), run(converted, values)
  errors = _errors(want, got)
  allowed = _HALF_TOLERANCE if half else _TOLERANCE
  if errors <= allowed:
    return
  # Deep models amplify rounding, which differs between backends. So compare
  # with the change that rounding the inputs makes in the model's own outputs.
  moved = {name: _round_otherwise(generator, array)
           for name, array in values.items()}
  noise = _errors(want, run(model, moved))
  if not errors <= _NOISE * noise:
    raise ValueError(
        f"model {model.name!r} could not be carried over: on a random batch "
        f"its outputs differ by {errors:.3g} of the largest; allowed is "
        f"{allowed:g}, or {_NOISE} times what rounding the inputs changes, "
        f"{noise:.3g}.")


def _errors(want: list[np.ndarray], got: list[np.ndarray]) -> float:
  """Returns the largest difference as a share of the largest output."""
  if [array.shape for array in want] != [array.shape for array in got]:
    return np.inf
  return max(
      np.abs(expected - actual).max() / max(np.abs(expected).max(), 1e-30)
      for expected, actual in zip(want, got))


def _round_otherwise(
    generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
  if not np.issubdtype(values.dtype, np.floating):
    return values
  step = np.finfo(values.dtype).eps * generator.choice([-1, 1], values.shape)
  return (values * (1 + step)).astype(values.dtype)


def _draw(
    generator: np.random.Generator, tensor: Any, batch: int) -> np.ndarray:
  shape = [batch, *(_SIZE if side is None else side
                    for side in tensor.shape[1:])]
  dtype = tf.as_dtype(tensor.dtype)
  if dtype.is_floating:
    return generator.normal(size=shape).astype(dtype.as_numpy_dtype)
  return generator.integers(0, 2, shape).astype(dtype.as_numpy_dtype)
