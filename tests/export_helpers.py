"""Converted tiny models, and looks into .tflite files, that the tests share."""

import functools
import importlib
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Sequence

import flatbuffers
import numpy as np
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

import keras_attr_preserve as kap
from keras_attr_preserve.export.tflite import seal
from tests import tiny
from tests.shared_files import shared

SIZE = 8
WIDTH = 16
LAYER = "act"
MODES = ("float32", "float16", "dynamic", "int8", "int16x8")
LITERT_RUNTIMES = ("xnnpack", "builtin", "reference")

needs_tflm = unittest.skipUnless(
    kap.export.tflm_installed(),
    "tflite-micro is not installed (pip install --pre tflite-micro)")


def skip_without_examples() -> None:
  """Skips the running module where the examples cannot run."""
  for name in (
      "examples.experiment.data.digit_scenes", "matplotlib", "sklearn"):
    try:
      importlib.import_module(name)
    except ImportError as error:
      raise unittest.SkipTest(
          f"the examples or what they need are not installed: {error}"
      ) from error


def images(count: int = 8, seed: int = 1) -> np.ndarray:
  """Draws images that the models below take."""
  return tiny.images(count, seed, SIZE)


def calibration() -> np.ndarray:
  """Draws the representative images of every conversion below."""
  return images(32, seed=2)


def wcam(method: str = "swa") -> kap.WCAM:
  return kap.WCAM(LAYER, method=method)


# Each with its variables, which a model takes long to list, and their values.
_built: list[tuple[keras.Model, list[tf.Variable], list[np.ndarray]]] = []


@functools.cache
def net(tail: str = "gap", **settings) -> keras.Model:
  """Builds a model once for all tests of a process. Do not change it.

  It is wide enough for the converter to quantize kernels in mode "dynamic".
  """
  built = tiny.conv_net(
      tail=tail, **{"size": SIZE, "width": WIDTH, **settings})
  _built.append((built, built.weights, built.get_weights()))
  return built


def changed_nets() -> list[str]:
  """Names the shared models that some test has changed, and mends them."""
  changed = []
  for built, variables, values in _built:
    if any(not np.array_equal(variable.numpy(), value)
           for variable, value in zip(variables, values)):
      changed.append(built.name)
      built.set_weights(values)
  return changed


@shared
def converted(
    tail: str = "gap",
    mode: str = "float32",
    method: str = "swa",
    target: str = "phone",
    road: str = "auto",
    **settings,
) -> bytes:
  """Converts `net(tail, **settings)` once for all tests."""
  return kap.export.convert(
      net(tail, **settings), wcam(method), mode=mode,
      representative_images=calibration() if "int" in mode else None,
      target=target, road=road)


@functools.cache
def interpreter(
    tail="gap", mode="float32", method="swa", runtime="xnnpack",
    **settings) -> kap.export.Interpreter:
  """The interpreter of a file that `converted` makes, one for all tests."""
  return kap.export.Interpreter(
      converted(tail, mode, method, **settings), runtime=runtime)


def variables_of(concrete) -> tf.Module:
  """Holds a traced function's variables, to be saved without their model.

  Saving a Keras model traces each of its layers, which takes longer than to
  convert it.
  """
  holder = tf.Module()
  holder.variables_held = list(concrete.variables)
  return holder


def plainly_converted(net: keras.Model, mode: str) -> bytes:
  """Converts a model of named outputs by TensorFlow alone, for one image.

  The signature is called "serve", its input "images".
  """
  shape = [1, *net.inputs[0].shape[1:]]
  serve = tf.function(net).get_concrete_function(
      tf.TensorSpec(shape, tf.float32, name="images"))
  with tempfile.TemporaryDirectory() as folder:
    tf.saved_model.save(
        variables_of(serve), folder, signatures={"serve": serve})
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["serve"])
    if mode != "float32":
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
      converter.target_spec.supported_types = [tf.float16]
    if mode == "int8":
      converter.representative_dataset = lambda: (
          {"images": image[None]} for image in calibration())
      converter.target_spec.supported_ops = [
          tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
      converter.inference_input_type = tf.int8
      converter.inference_output_type = tf.int8
    return converter.convert()


@shared
def bare(tail: str = "gap", mode: str = "float32") -> bytes:
  """Converts `net(tail)`, whose one output is "logits", by TensorFlow alone."""
  model = net(tail)
  return plainly_converted(
      keras.Model(model.inputs, {"logits": model.outputs[0]}), mode)


@functools.cache
def quantize_aware(tail: str = "gap", sparse: bool = False) -> keras.Model:
  """Builds a quantize-aware model whose ranges have seen images."""
  make = tiny.quantize_sparse if sparse else tiny.quantize
  student = make(tiny.conv_net(tail=tail, size=SIZE))
  for _ in range(3):
    student(calibration(), training=True)
  return student


@shared
def converted_quantize_aware(
    tail: str = "gap",
    sparse: bool = False,
    target: str = "phone",
    calibrated: bool = False,
) -> bytes:
  """Converts `quantize_aware(tail, sparse)` once for all tests."""
  return kap.export.convert(
      quantize_aware(tail, sparse), wcam(), mode="int8", target=target,
      representative_images=calibration() if calibrated else None)


def parsed(content: bytes) -> schema.ModelT:
  """Parses a file by LiteRT's own tools."""
  return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def packed(model: schema.ModelT) -> bytes:
  """Writes a file by LiteRT's own tools; our files are sealed again."""
  builder = flatbuffers.Builder(4096)
  builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
  return seal.stamped(bytes(builder.Output()))


def foreign(content: bytes) -> bytes:
  """Takes signatures and metadata off a file, as if others had made it."""
  model = parsed(content)
  model.signatureDefs, model.metadata = [], []
  model.description = b"made by others"
  return packed(model)


def operators(content: bytes) -> list[list[str]]:
  """Names the operators of each subgraph; other makers' are "CUSTOM"."""
  model = parsed(content)
  names = {code: name for name, code in vars(schema.BuiltinOperator).items()
           if not name.startswith("_")}
  codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)]
           for code in model.operatorCodes]
  return [[codes[operator.opcodeIndex] for operator in graph.operators]
          for graph in model.subgraphs]


def input_gradient(
    score, images_in: np.ndarray) -> np.ndarray:
  """Differentiates a function of images, summed, by them; plain TensorFlow."""
  batch = tf.constant(images_in)
  with tf.GradientTape() as tape:
    tape.watch(batch)
    value = tf.reduce_sum(score(batch))
  return tape.gradient(value, batch).numpy()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Gives the cosine of each pair of maps."""
  one, other = (maps.reshape(len(maps), -1).astype(np.float64)
                for maps in (one, other))
  return (one * other).sum(1) / (
      np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def run_python(
    code: str, *arguments: str, timeout: float = 300,
) -> subprocess.CompletedProcess:
  """Runs code in a process of its own that finds what this one finds."""
  code = f"import sys; sys.path[:0] = {sys.path!r}\n{code}"
  return subprocess.run(
      [sys.executable, "-c", code, *arguments], capture_output=True, text=True,
      check=False, timeout=timeout)


def run_module(
    module: str, arguments: Sequence[str], timeout: float = 600,
    **settings,
) -> subprocess.CompletedProcess:
  """Runs `python -m module` in a process that finds what this one finds."""
  code = ("import runpy; sys.argv = sys.argv[1:]\n"
          "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)")
  code = f"import sys; sys.path[:0] = {sys.path!r}\n{code}"
  return subprocess.run(
      [sys.executable, "-c", code, module, *arguments], capture_output=True,
      text=True, check=False, timeout=timeout, **settings)
