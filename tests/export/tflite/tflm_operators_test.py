"""Tests of tflm_operators.py: operators that TFLite Micro has or lacks."""

import json

import flatbuffers
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite import tflm_operators
from tests import export_helpers as helpers
from tests import tiny

_CODES = {name: code for name, code in vars(schema.BuiltinOperator).items()
          if not name.startswith("_")}

# Loads a file of each operator in a process of its own, since the interpreter
# may crash on one that is there but has other inputs than these files give it.
_FOUND = """
import os, json
from tflite_micro import runtime
found = []
for name, content in json.load(open(sys.argv[1])).items():
  ours, theirs = os.pipe()
  child = os.fork()
  if not child:
    os.dup2(theirs, 1)
    os.dup2(theirs, 2)
    try:
      runtime.Interpreter.from_bytes(bytes.fromhex(content), arena_size=100000)
    finally:
      os._exit(0)
  os.close(theirs)
  said = b""
  while more := os.read(ours, 65536):
    said += more
  os.close(ours)
  os.waitpid(child, 0)
  if b"Didn't find op" not in said:
    found.append(name)
print(json.dumps(found))
"""


def file_of(name, kinds=("FLOAT32",), made="FLOAT32", sparse=False) -> bytes:
  """Makes a file of one operator."""
  model = schema.ModelT()
  model.version = 3
  code = schema.OperatorCodeT()
  code.builtinCode = _CODES[name]
  code.deprecatedBuiltinCode = min(code.builtinCode, 127)
  code.version = 1
  model.operatorCodes = [code]
  graph = schema.SubGraphT()
  graph.tensors = []
  for i, kind in enumerate((*kinds, made)):
    tensor = schema.TensorT()
    tensor.type = getattr(schema.TensorType, kind)
    tensor.shape, tensor.buffer, tensor.name = [1], 0, b"t%d" % i
    graph.tensors.append(tensor)
  if sparse:
    graph.tensors[1].sparsity = schema.SparsityParametersT()
  operator = schema.OperatorT()
  operator.opcodeIndex = 0
  operator.inputs = graph.inputs = list(range(len(kinds)))
  operator.outputs = graph.outputs = [len(kinds)]
  graph.operators = [operator]
  model.subgraphs = [graph]
  model.buffers = [schema.BufferT()]
  builder = flatbuffers.Builder(1024)
  builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
  return bytes(builder.Output())


class TableTest(absltest.TestCase):

  def test_names_are_the_schema_s(self):
    self.assertContainsSubset(tflm_operators.RESOLVER_METHODS, _CODES)

  def test_methods_by_hand(self):
    for name, method in (
        ("CONV_2D", "AddConv2D"), ("DEPTHWISE_CONV_2D", "AddDepthwiseConv2D"),
        ("FULLY_CONNECTED", "AddFullyConnected"), ("MEAN", "AddMean"),
        ("AVERAGE_POOL_2D", "AddAveragePool2D"), ("SPLIT_V", "AddSplitV"),
        ("TRANSPOSE_CONV", "AddTransposeConv"), ("PADV2", "AddPadV2"),
        ("RESIZE_NEAREST_NEIGHBOR", "AddResizeNearestNeighbor"),
        ("BATCH_TO_SPACE_ND", "AddBatchToSpaceNd"), ("RELU6", "AddRelu6"),
        ("BATCH_MATMUL", "AddBatchMatMul"), ("L2_POOL_2D", "AddL2Pool2D"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM")):
      self.assertEqual(tflm_operators.RESOLVER_METHODS[name], method)

  def test_what_it_is_known_to_lack(self):
    for name in ("DENSIFY", "ONE_HOT", "TILE", "SELECT", "GELU", "POW"):
      self.assertNotIn(name, tflm_operators.RESOLVER_METHODS)

  @helpers.needs_tflm
  def test_the_interpreter_finds_exactly_these(self):
    path = tiny.folder(self) / "files.json"
    path.write_text(json.dumps({
        name: file_of(name).hex() for name in _CODES
        if name not in ("CUSTOM", "DELEGATE")}))
    done = helpers.run_python(_FOUND, str(path))
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertCountEqual(
        json.loads(done.stdout.splitlines()[-1]),
        tflm_operators.RESOLVER_METHODS)


class FilesTest(parameterized.TestCase):

  def test_integers_and_floats(self):
    for mode in ("float32", "int8"):
      content = helpers.converted("gap", mode, target="microcontroller")
      self.assertEqual(tflm_operators.missing_operators(content), [])
      names = dict.fromkeys(helpers.operators(content)[0])
      self.assertEqual(
          tflm_operators.resolver_calls(content),
          [tflm_operators.RESOLVER_METHODS[name] for name in names])
      self.assertIn("AddConv2D", tflm_operators.resolver_calls(content))

  @parameterized.parameters(
      ("float16", "DEQUANTIZE of FLOAT16"),
      ("dynamic", "FULLY_CONNECTED of FLOAT32 with weights of INT8"))
  def test_other_modes(self, mode, want):
    content = helpers.converted(
        "flatten", mode, "ewa", target="microcontroller")
    self.assertIn(want, tflm_operators.missing_operators(content))
    with self.assertRaisesRegex(
        ValueError, f"has operators that TFLite Micro lacks: .*{want}"):
      tflm_operators.resolver_calls(content)

  def test_operators_that_are_not_there(self):
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
    def serve(x):
      return tf.tile(tf.nn.gelu(x), [2]) + tf.pow(tf.tile(x, [2]), 3.5)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()])
    content = converter.convert()
    self.assertCountEqual(
        tflm_operators.missing_operators(content), ["GELU", "TILE", "POW"])

  @parameterized.parameters(
      (("FLOAT32", "FLOAT32"), []), (("INT8", "INT8"), []),
      (("INT8", "INT4"), []), (("INT16", "INT8"), []),
      (("UINT8", "UINT8"), ["CONV_2D of UINT8"]),
      (("INT16", "INT16"), ["CONV_2D of INT16 with weights of INT16"]),
      (("FLOAT32", "INT8"), ["CONV_2D of FLOAT32 with weights of INT8"]))
  def test_types_of_weights(self, kinds, want):
    self.assertEqual(
        tflm_operators.missing_operators(file_of("CONV_2D", kinds)), want)
    self.assertEqual(
        tflm_operators.missing_operators(
            file_of("TRANSPOSE_CONV", ("INT32", kinds[1], kinds[0]))),
        ["TRANSPOSE_CONV of INT8 with weights of INT4"] if "INT4" in kinds
        else [text.replace("CONV_2D", "TRANSPOSE_CONV") for text in want])

  @parameterized.parameters(
      ("EXP", "INT8", True), ("EXP", "FLOAT32", False),
      ("GATHER", "INT16", True), ("GATHER", "INT8", False))
  def test_types_of_other_kernels(self, name, kind, refused):
    self.assertEqual(
        tflm_operators.missing_operators(file_of(name, (kind,), kind)),
        [f"{name} of {kind}"] if refused else [])

  def test_sparse_weights(self):
    self.assertEqual(
        tflm_operators.missing_operators(
            file_of("FULLY_CONNECTED", ("INT8", "INT8"), sparse=True)),
        ["FULLY_CONNECTED with sparse weights"])

  def test_each_once_in_order(self):
    model = helpers.parsed(file_of("TILE", ("FLOAT16",), "FLOAT16"))
    other = helpers.parsed(file_of("GELU"))
    graph = model.subgraphs[0]
    other.subgraphs[0].operators[0].opcodeIndex = 1
    model.operatorCodes += other.operatorCodes
    graph.operators = [*graph.operators, *other.subgraphs[0].operators,
                       *graph.operators]
    self.assertEqual(
        tflm_operators.missing_operators(helpers.packed(model)),
        ["TILE", "GELU"])

  def test_every_subgraph_is_read(self):
    content = helpers.converted("block", "int8")
    self.assertLen(helpers.operators(content), 2)
    self.assertLen(
        set(tflm_operators.resolver_calls(content)),
        len({*helpers.operators(content)[0], *helpers.operators(content)[1]}))

  @parameterized.parameters((b"",), (b"\x1c\0\0\0TFL3" + bytes(90),))
  def test_no_file(self, content):
    for call in (tflm_operators.missing_operators,
                 tflm_operators.resolver_calls):
      with self.assertRaisesRegex(ValueError, "tflite_model"):
        call(content)
    with self.assertRaises(TypeError):
      tflm_operators.missing_operators(np.zeros(3))


if __name__ == "__main__":
  absltest.main()
