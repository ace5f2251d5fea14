"""The operators of TFLite that TensorFlow Lite for Microcontrollers has.

A program for a microcontroller names each operator that its file uses
(`MicroMutableOpResolver`), so that only their kernels are linked. TFLite Micro
has about half of TFLite's operators.

Source: tensorflow/lite/micro/micro_mutable_op_resolver.h of tflite-micro,
compared with the interpreter of the package tflite-micro
(0.dev20261023182759). Older sources lack the newest operators, such as
REDUCE_ALL and DYNAMIC_UPDATE_SLICE.
"""

from collections.abc import Iterator

from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_model,
    type_name,
)

__all__ = ["RESOLVER_METHODS", "missing_operators", "resolver_calls"]

_NAMES = """
ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL
BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION
CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR
FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL
HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN
MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE
REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX
SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""
# Methods whose name is not the operator's name in CamelCase.
_ODD = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
# Types that the reference kernels take: of the data, and of their weights.
_INTEGERS = {"FLOAT32": ("FLOAT32",), "INT8": ("INT8", "INT4"),
             "INT16": ("INT8",)}
_WEIGHTED = {
    "CONV_2D": _INTEGERS,
    "DEPTHWISE_CONV_2D": _INTEGERS,
    "FULLY_CONNECTED": _INTEGERS,
    "TRANSPOSE_CONV": {**_INTEGERS, "INT8": ("INT8",)},
}

_ONLY = {"EXP": ("FLOAT32",), "GATHER": ("FLOAT32", "INT8")}


def _method(name: str) -> str:
  return _ODD.get(name, "Add" + "".join(
      "2D" if word == "2D" else word.capitalize() for word in name.split("_")))


RESOLVER_METHODS = {name: _method(name) for name in _NAMES.split()}


def missing_operators(tflite_model: bytes) -> list[str]:
  """Lists the operators of a file that TFLite Micro cannot run.

  Args:
    tflite_model: the file's bytes.

  Returns:
    Names in the order of the file, each once. "TILE" is an operator that TFLite
    Micro lacks. "CONV_2D of FLOAT32 with weights of INT8" is an operator that
    it has, but not for these types. Empty if it takes them all. Kernels also
    refuse rarer combinations of types, which only the interpreter can tell.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one.
  """
  model = read_model(tflite_model)
  return list(dict.fromkeys(
      refusal for graph in model.subgraphs for operator in graph.operators
      for refusal in _refused(model, graph, operator)))


def _refused(
    model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT
) -> Iterator[str]:
  """Names an operator that is missing, or missing for its tensors' types."""
  name = operator_name(model, operator)
  inputs = [graph.tensors[i] for i in operator.inputs if i >= 0]
  if name not in RESOLVER_METHODS:
    yield name
    return
  if any(tensor.sparsity is not None for tensor in inputs):
    yield f"{name} with sparse weights"
  kinds = [type_name(tensor) for tensor in inputs]
  output_kinds = [type_name(graph.tensors[i]) for i in operator.outputs]
  for kind in ("FLOAT16", "BFLOAT16"):
    if kind in (*kinds, *output_kinds):
      yield f"{name} of {kind}"
  if kinds and kinds[0] not in _ONLY.get(name, kinds):
    yield f"{name} of {kinds[0]}"
  if name in _WEIGHTED and len(kinds) > 2 - (name != "TRANSPOSE_CONV"):
    # The first input of a transposed convolution is its output's shape.
    data = kinds[2 if name == "TRANSPOSE_CONV" else 0]
    if data not in _WEIGHTED[name]:
      yield f"{name} of {data}"
    elif kinds[1] not in _WEIGHTED[name][data]:
      yield f"{name} of {data} with weights of {kinds[1]}"


def resolver_calls(tflite_model: bytes) -> list[str]:
  """Lists the methods that add a file's operators to a program.

  Args:
    tflite_model: the file's bytes.

  Returns:
    Names of methods of `MicroMutableOpResolver`, such as "AddConv2D", for
    exactly the operators of the file, each once, in the order of first use.

  Raises:
    TypeError: not bytes.
    ValueError: not a .tflite file, a damaged one, or one with operators that
      TFLite Micro lacks.
  """
  missing = missing_operators(tflite_model)
  if missing:
    raise ValueError(
        "tflite_model has operators that TFLite Micro lacks: "
        f"{', '.join(missing)}.")
  model = read_model(tflite_model)
  names = [operator_name(model, operator) for graph in model.subgraphs
           for operator in graph.operators]
  return [RESOLVER_METHODS[name] for name in dict.fromkeys(names)]
