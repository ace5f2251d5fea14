"""Tests of schema.py: files are read right and annotated unharmed."""

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite import schema as file_schema
from tests import export_helpers as helpers


def data_offsets(content: bytes) -> list[int]:
  """Where in a file each buffer that holds anything begins."""
  model = schema.Model.GetRootAs(content)
  tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
  return [table.Vector(table.Offset(4)) for table in tables
          if table.Offset(4) and table.VectorLen(table.Offset(4))]


def quantized_tensor(model, values, scale, zero_point, axis=0):
  """Makes a constant int8 tensor in a model."""
  buffer = schema.BufferT()
  buffer.data = np.asarray(values, np.int8).ravel().view(np.uint8)
  model.buffers = [*(model.buffers or []), buffer]
  tensor = schema.TensorT()
  tensor.type = schema.TensorType.INT8
  tensor.shape = list(np.shape(values))
  tensor.buffer = len(model.buffers) - 1
  tensor.quantization = schema.QuantizationParametersT()
  tensor.quantization.scale = np.float32(scale)
  tensor.quantization.zeroPoint = np.int64(zero_point)
  tensor.quantization.quantizedDimension = axis
  return tensor


class TensorSpecTest(absltest.TestCase):

  def test_int8_by_hand(self):
    spec = file_schema.TensorSpec(0, (1,), np.dtype(np.int8), 0.5, -28)
    self.assertEqual(spec.range, (-50.0, 77.5))
    numbers = spec.encode(np.float32([0, 0.5, 0.74, 0.76, -50, 77.5, 99, -99]))
    self.assertEqual(numbers.dtype, np.int8)
    self.assertEqual(
        numbers.tolist(), [-28, -27, -27, -26, -128, 127, 127, -128])
    back = spec.decode(numbers)
    self.assertEqual(back.dtype, np.float32)
    self.assertEqual(back.tolist(), [0, .5, .5, 1, -50, 77.5, 77.5, -50])

  def test_uint8(self):
    spec = file_schema.TensorSpec(0, (1,), np.dtype(np.uint8), 1 / 255, 0)
    np.testing.assert_allclose(spec.range, (0, 1))
    pixels = np.arange(256) / np.float32(255)
    np.testing.assert_array_equal(spec.encode(pixels), np.arange(256))
    np.testing.assert_allclose(spec.decode(spec.encode(pixels)), pixels, 1e-6)

  def test_float(self):
    spec = file_schema.TensorSpec(0, (1,), np.dtype(np.float32), 0.0, 0)
    self.assertEqual(spec.range, (-np.inf, np.inf))
    values = np.float32([-1e30, 0.1, 5])
    np.testing.assert_array_equal(spec.encode(values), values)
    np.testing.assert_array_equal(spec.decode(values), values)


class ReadTest(parameterized.TestCase):

  def test_bytes_and_bytearrays(self):
    content = helpers.converted()
    for file in (content, bytearray(content)):
      self.assertLen(file_schema.read_model(file).subgraphs, 2)

  @parameterized.parameters(("net.tflite",), (None,), (3,), ([b"TFL3"],))
  def test_no_bytes(self, content):
    with self.assertRaisesRegex(TypeError, "tflite_model must be the bytes"):
      file_schema.read_model(content)

  @parameterized.parameters(b"", b"TFL3", b"\x89HDF\r\n\x1a\n" * 40,
                            b"PK\x03\x04" * 40, b"\x1c\0\0\0TFL4" + bytes(90))
  def test_other_files(self, content):
    with self.assertRaisesRegex(
        ValueError, f"must be a .tflite file.*; got {len(content)} bytes"):
      file_schema.read_model(content)

  @parameterized.parameters("gap", "block")
  def test_truncated(self, tail):
    content = helpers.converted(tail, "int8")
    for length in range(0, len(content), 23):
      with self.assertRaisesRegex(ValueError, "tflite_model"):
        file_schema.read_model(content[:length])

  def test_only_the_identifier(self):
    with self.assertRaisesRegex(ValueError, "tflite_model is damaged"):
      file_schema.read_model(b"\x1c\0\0\0TFL3" + bytes(200))

  @parameterized.parameters(
      ([1, 1 << 17, 1 << 18, 2],), ([1 << 29],), ([1, -1, 4],))
  def test_shapes_that_no_tensor_has(self, shape):
    # The first has 2^36 numbers, which is 0 in 32 bits.
    model = helpers.parsed(helpers.converted())
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = np.int32(shape)
    with self.assertRaisesRegex(
        ValueError, "tflite_model is damaged: .*tensor of shape"):
      file_schema.read_model(helpers.packed(model))

  @parameterized.parameters(("gap", "int8"), ("block", "float32"))
  def test_flipped_bits(self, tail, mode):
    self.check_flipped_bits(tail, mode, 60)

  @parameterized.parameters(("gap", "int8"), ("block", "float32"))
  @pytest.mark.slow("files")
  def test_many_flipped_bits(self, tail, mode):
    self.check_flipped_bits(tail, mode, 3000)

  def check_flipped_bits(self, tail, mode, count):
    content = helpers.converted(tail, mode)
    rng = np.random.default_rng(0)
    for i in range(count):
      damaged = bytearray(content)
      # Half of the flips hit the tables at the beginning.
      damaged[rng.integers(len(content) if i % 2 else 400)] ^= (
          1 << rng.integers(8))
      try:
        model = file_schema.read_model(bytes(damaged))
        file_schema.signatures(model)
        file_schema.read_metadata(model)
      except ValueError:
        continue  # Anything else than a ValueError fails the test.


class SignaturesTest(absltest.TestCase):

  def test_names_shapes_and_types(self):
    by_name = file_schema.signatures(
        file_schema.read_model(helpers.converted("block", "int8")))
    self.assertEqual(set(by_name), {"predict", "explain"})
    explain = by_name["explain"]
    self.assertNotEqual(by_name["predict"].subgraph, explain.subgraph)
    self.assertEqual(
        {name: spec.shape for name, spec in explain.inputs.items()},
        {"images": (1, 8, 8, 2), "class_weights": (1, 3)})
    self.assertEqual(
        {name: spec.shape for name, spec in explain.outputs.items()},
        {"logits": (1, 3), "map": (1, 8, 8), "features": (1, 8, 8, 16),
         "sensitivity": (1, 1, 1, 16)})
    for specs in (explain.inputs, explain.outputs):
      self.assertEqual(
          sorted(spec.position for spec in specs.values()),
          list(range(len(specs))))
      for name, spec in specs.items():
        floats = name in ("class_weights", "map", "sensitivity")
        self.assertEqual(spec.dtype, np.float32 if floats else np.int8)
        self.assertEqual(spec.scale > 0, not floats)

  def test_as_litert_reads_them(self):
    content = helpers.converted("block", "int8")
    interpreter = litert.Interpreter(model_content=content)
    for key, signature in file_schema.signatures(
        file_schema.read_model(content)).items():
      runner = interpreter.get_signature_runner(key)
      for specs, details in ((signature.inputs, runner.get_input_details()),
                             (signature.outputs, runner.get_output_details())):
        self.assertEqual(set(specs), set(details))
        for name, spec in specs.items():
          self.assertEqual(spec.shape, tuple(details[name]["shape"]))
          self.assertEqual(spec.dtype, details[name]["dtype"])
          self.assertEqual(
              (spec.scale, spec.zero_point), details[name]["quantization"])

  def test_a_file_without_signatures(self):
    content = helpers.foreign(helpers.converted())
    interpreter = litert.Interpreter(model_content=content)
    by_name = file_schema.signatures(file_schema.read_model(content))
    self.assertEqual(list(by_name), [""])
    for specs, details in (
        (by_name[""].inputs, interpreter.get_input_details()),
        (by_name[""].outputs, interpreter.get_output_details())):
      self.assertEqual(
          [(name, spec.position, spec.shape) for name, spec in specs.items()],
          [(detail["name"], i, tuple(detail["shape"]))
           for i, detail in enumerate(details)])

  def test_a_type_that_no_map_has(self):
    model = file_schema.read_model(helpers.converted())
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].type = schema.TensorType.STRING
    with self.assertRaisesRegex(ValueError, "has type STRING, which no map"):
      file_schema.signatures(model)


  def test_a_scale_without_a_zero_point(self):
    model = file_schema.read_model(helpers.converted("gap", "int8"))
    graph = model.subgraphs[0]
    graph.tensors[graph.outputs[0]].quantization.zeroPoint = np.int64([])
    with self.assertRaisesRegex(ValueError, "tflite_model"):
      file_schema.signatures(model)


class ConstantTest(parameterized.TestCase):

  def test_scales_along_no_axis(self):
    model = schema.ModelT()
    tensor = quantized_tensor(model, [[1, 2], [3, 4]], [1, 2], [0, 0], axis=5)
    with self.assertRaisesRegex(ValueError, "tflite_model"):
      file_schema.constant(model, tensor)

  def test_per_channel_by_hand(self):
    model = schema.ModelT()
    values = [[1, -2, 3], [4, 5, -6]]
    for axis, scale, want in (
        (0, [0.5, 2], [[.5, -1, 1.5], [8, 10, -12]]),
        (1, [1, 10, 100], [[1, -20, 300], [4, 50, -600]])):
      tensor = quantized_tensor(
          model, values, scale, np.zeros(len(scale)), axis)
      np.testing.assert_array_equal(file_schema.constant(model, tensor), want)
      tensor.quantization.zeroPoint = np.int64([0])  # One for all.
      np.testing.assert_array_equal(file_schema.constant(model, tensor), want)

  def test_zero_points_by_hand(self):
    model = schema.ModelT()
    tensor = quantized_tensor(model, [[1, -2], [3, 4]], [0.5], [-2])
    np.testing.assert_array_equal(
        file_schema.constant(model, tensor), [[1.5, 0], [2.5, 3]])
    tensor = quantized_tensor(model, [[1, -2], [3, 4]], [0.5, 2], [1, 4])
    np.testing.assert_array_equal(
        file_schema.constant(model, tensor), [[0, -1.5], [-2, 0]])

  @parameterized.parameters(
      (np.float32, "FLOAT32"), (np.float16, "FLOAT16"), (np.int32, "INT32"))
  def test_other_types(self, dtype, name):
    model = schema.ModelT()
    tensor = quantized_tensor(model, np.zeros([2, 3]), [], [])
    tensor.type = getattr(schema.TensorType, name)
    values = np.arange(6).reshape(2, 3).astype(dtype)
    model.buffers[0].data = values.ravel().view(np.uint8)
    got = file_schema.constant(model, tensor)
    self.assertEqual(got.dtype, np.float32)
    np.testing.assert_array_equal(got, values)

  def test_what_is_computed_at_run_time(self):
    model = file_schema.read_model(helpers.converted())
    graph = model.subgraphs[0]
    for position in (*graph.inputs, *graph.outputs):
      self.assertIsNone(
          file_schema.constant(model, graph.tensors[position]))

  @parameterized.parameters(("float32", 1e-7), ("int8", 0.5 / 127))
  def test_the_kernels_of_a_file(self, mode, steps):
    self.check_kernels(mode, steps)

  @pytest.mark.slow("files")
  def test_the_kernels_of_a_float16_file(self):
    self.check_kernels("float16", 2 ** -11)

  def check_kernels(self, mode, steps):
    keras_model = helpers.net("flatten")
    want = np.transpose(keras_model.get_layer("logits").kernel.numpy())
    content = helpers.converted("flatten", mode, "ewa")
    model = file_schema.read_model(content)
    tensors = [file_schema.constant(model, tensor)
               for tensor in model.subgraphs[0].tensors]
    kernel, = [kernel for kernel in tensors
               if kernel is not None and kernel.shape == want.shape]
    # Rounded to the nearest step; half a step of the largest at most.
    np.testing.assert_allclose(
        kernel, want, 0, 1.001 * steps * np.abs(want).max())


class OperatorNameTest(absltest.TestCase):

  def test_new_and_old_files(self):
    model, operator = schema.ModelT(), schema.OperatorT()
    code = schema.OperatorCodeT()
    model.operatorCodes, operator.opcodeIndex = [code], 0
    code.builtinCode = schema.BuiltinOperator.CONV_2D
    self.assertEqual(file_schema.operator_name(model, operator), "CONV_2D")
    code.builtinCode = 0
    code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
    self.assertEqual(file_schema.operator_name(model, operator), "SOFTMAX")

  def test_a_file_s_operators(self):
    model = file_schema.read_model(helpers.converted())
    self.assertEqual(
        [file_schema.operator_name(model, operator)
         for operator in model.subgraphs[0].operators],
        helpers.operators(helpers.converted())[0])


class AnnotateTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Two outputs, so that an alias can leave one out.
    model = helpers.net("flatten")
    model = keras.Model(model.inputs, {
        "logits": model.outputs[0],
        "hidden": model.get_layer("hidden").output})
    cls.plain = {
        quantized: helpers.plainly_converted(
            model, "int8" if quantized else "float32")
        for quantized in (False, True)}
    cls.facts = {
        "layer": "größe", "share": 0.5, "names": ["a", "b"], "no": None}
    cls.annotated = {
        quantized: file_schema.annotate(
            content, cls.facts, {"short": ("serve", ("logits",))})
        for quantized, content in cls.plain.items()}

  @parameterized.parameters(False, True)
  def test_constants_are_aligned(self, quantized):
    content = self.annotated[quantized]
    self.assertNotEmpty(data_offsets(self.plain[quantized]))
    self.assertGreater(
        len(data_offsets(content)), len(data_offsets(self.plain[quantized])))
    for offset in data_offsets(content):
      self.assertEqual(offset % 16, 0, data_offsets(content))

  def test_a_builder_of_flatbuffers_own_would_not_align(self):
    # Where this fails, flatbuffers aligns and our builder may go.
    offsets = data_offsets(helpers.packed(helpers.parsed(self.plain[True])))
    self.assertNotEmpty([offset for offset in offsets if offset % 16])

  @parameterized.product(quantized=(False, True), runtime=("xnnpack", "ref"))
  def test_outputs_are_the_same_to_the_last_bit(self, quantized, runtime):
    resolver = litert.OpResolverType
    kind = resolver.BUILTIN if runtime == "xnnpack" else resolver.BUILTIN_REF
    outputs = []
    for content in (self.plain[quantized], self.annotated[quantized]):
      interpreter = litert.Interpreter(
          model_content=content, experimental_op_resolver_type=kind)
      runner = interpreter.get_signature_runner("serve")
      (name, spec), = runner.get_input_details().items()
      image = helpers.images(1)
      if quantized:
        scale, zero_point = spec["quantization"]
        image = np.clip(
            np.round(image / scale) + zero_point, -128, 127).astype(np.int8)
      outputs.append(runner(**{name: image}))
    self.assertEqual(set(outputs[0]), {"logits", "hidden"})
    for name, values in outputs[0].items():
      np.testing.assert_array_equal(values, outputs[1][name])

  def test_graph_and_constants_are_the_same(self):
    before, after = (helpers.parsed(files[True])
                     for files in (self.plain, self.annotated))
    self.assertEqual(helpers.operators(self.plain[True]),
                     helpers.operators(self.annotated[True]))
    self.assertLen(after.buffers, len(before.buffers) + 1)
    for entry, other in zip(before.buffers, after.buffers):
      np.testing.assert_array_equal(
          [] if entry.data is None else entry.data,
          [] if other.data is None else other.data)
    self.assertEqual([entry.name for entry in before.metadata],
                     [entry.name for entry in after.metadata][:-1])

  @parameterized.parameters(False, True)
  def test_metadata_comes_back(self, quantized):
    self.assertIsNone(file_schema.read_metadata(
        file_schema.read_model(self.plain[quantized])))
    self.assertEqual(
        file_schema.read_metadata(
            file_schema.read_model(self.annotated[quantized])), self.facts)

  def test_an_alias(self):
    interpreter = litert.Interpreter(model_content=self.annotated[False])
    self.assertEqual(
        set(interpreter.get_signature_list()), {"serve", "short"})
    image = helpers.images(1)
    name, = interpreter.get_signature_runner("short").get_input_details()
    short = interpreter.get_signature_runner("short")(**{name: image})
    whole = interpreter.get_signature_runner("serve")(**{name: image})
    self.assertEqual(set(short), {"logits"})
    np.testing.assert_array_equal(short["logits"], whole["logits"])
    np.testing.assert_allclose(
        short["logits"], helpers.net("flatten")(image), 1e-5, 1e-5)

  def test_annotating_twice(self):
    content = file_schema.annotate(
        self.annotated[True], {}, {"more": ("short", ("logits",))})
    self.assertEqual(
        set(file_schema.signatures(file_schema.read_model(content))),
        {"serve", "short", "more"})
    self.assertEmpty(
        [offset for offset in data_offsets(content) if offset % 16])

  def test_what_convert_writes(self):
    for tail, mode in (("gap", "float32"), ("gap", "int8"), ("block", "int8")):
      content = helpers.converted(tail, mode)
      self.assertEmpty(
          [offset for offset in data_offsets(content) if offset % 16])
      metadata = file_schema.read_metadata(file_schema.read_model(content))
      facts = {"layer": "act", "method": "swa", "mode": mode, "road": "tail"}
      self.assertEqual({**metadata, **facts}, metadata)

  def test_no_tflite_file(self):
    with self.assertRaisesRegex(ValueError, "must be a .tflite file"):
      file_schema.annotate(b"none" * 9, {}, {})


if __name__ == "__main__":
  absltest.main()
