"""Tensors of a file, read on every runtime."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.export.tensors.file_tensors import FileTensors
from keras_attr_preserve.export.tensors.find_tensor import find_tensor
from tests import export_helpers as helpers
from tests import foreign_files, tiny

# Float32: LiteRT sums in another order than Keras, and folds norms in.
FLOAT32 = 1e-5


def of_operator(file: FileTensors, operator: str) -> list[int]:
  return [tensor.index for tensor in file.tensors.values()
          if tensor.operator == operator]


def outputs_of(net: keras.Model, layer: str, images: np.ndarray):
  return keras.Model(net.input, net.get_layer(layer).output)(images).numpy()


class ReadTest(parameterized.TestCase):

  @parameterized.parameters(*helpers.LITERT_RUNTIMES)
  def test_floats_are_those_of_keras(self, runtime):
    images, model = helpers.images(), helpers.net("block")
    file = FileTensors(foreign_files.converted("block"), runtime=runtime)
    first, second = of_operator(file, "CONV_2D")
    values = file.read(images, [second, first])
    self.assertEqual([*values], [second, first])
    for index, layer in ((first, "act"), (second, "act2")):
      np.testing.assert_allclose(
          values[index], outputs_of(model, layer, images), atol=FLOAT32)
      self.assertEqual(values[index].dtype, np.float32)

  @parameterized.parameters(*foreign_files.MODES)
  def test_every_tensor_is_what_litert_keeps(self, mode):
    content = foreign_files.converted("block", mode)
    file, image = FileTensors(content), helpers.images(1)
    preserved = foreign_files.preserved(content, file.input.encode(image))
    values = file.read(image)
    self.assertGreaterEqual(len(values), 4)
    for index, value in values.items():
      want = file.tensors[index].spec.decode(preserved[index])
      np.testing.assert_array_equal(value, want)
      self.assertTrue(np.isfinite(value).all())

  @parameterized.parameters(*foreign_files.INTEGERS)
  def test_integers_are_near_and_in_whole_steps(self, mode):
    images, model = helpers.images(), helpers.net("block")
    file = FileTensors(foreign_files.converted("block", mode))
    index = of_operator(file, "CONV_2D")[1]
    got, want = file.read(images, [index])[index], outputs_of(
        model, "act2", images)
    self.assertLess(tiny.relative_error(got, want), 0.03)  # Measured: .0165.
    steps = got / file.tensors[index].spec.scale
    # Float32 rounds products of the scale with up to 2^15 steps.
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)

  @parameterized.parameters(*helpers.LITERT_RUNTIMES)
  def test_outputs_stay_to_the_bit(self, runtime):
    images = helpers.images()
    for mode in ("float32", "int8"):
      content = foreign_files.converted("flatten", mode)
      file = FileTensors(content, runtime=runtime)
      plain = FileTensors(content, runtime=runtime)
      (output,) = file.outputs
      np.testing.assert_array_equal(
          file.read(images)[output], plain.read(images, [output])[output])

  @parameterized.parameters(
      (None, "xnnpack"), (4, "xnnpack"), (4, "reference"))
  def test_any_declared_batch(self, batch, runtime):
    images = helpers.images(7)
    file = FileTensors(
        foreign_files.converted("flatten", batch=batch), runtime=runtime)
    index = of_operator(file, "CONV_2D")[0]
    np.testing.assert_allclose(
        file.read(images, [index])[index],
        outputs_of(helpers.net("flatten"), "act", images), atol=FLOAT32)

  def test_a_file_that_takes_no_fewer_than_four(self):
    inputs = keras.Input((3, 2), batch_size=4)
    x = keras.layers.Lambda(lambda batch: tf.reshape(batch, [4, 6]))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    images = np.random.default_rng(0).normal(size=(6, 3, 2))
    content = foreign_files.convert(model, batch=4)
    file = FileTensors(content)
    kernel, bias = model.get_weights()
    want = images.reshape(6, 6) @ kernel + bias
    np.testing.assert_allclose(
        file.read(images, file.outputs)[file.outputs[0]], want, atol=FLOAT32)
    np.testing.assert_allclose(
        Interpreter(content).predict(images), want, atol=FLOAT32)

  @helpers.needs_tflm
  def test_tflite_micro_gives_the_reference_kernels_numbers(self):
    images = helpers.images(3)
    content = foreign_files.converted("flatten", "int8")
    want = FileTensors(content).read(images)
    got = FileTensors(content, runtime="tflm").read(images)
    self.assertEqual({*got}, {*want})
    for index, values in want.items():
      np.testing.assert_array_equal(got[index], values)

  def test_names(self):
    images = helpers.images(2)
    file = FileTensors(foreign_files.converted("block"))
    index = of_operator(file, "CONV_2D")[0]
    name = file.tensors[index].name
    for tensor_name in (name, name.split(";")[0]):
      np.testing.assert_array_equal(
          file.read(images, [tensor_name])[tensor_name],
          file.read(images, [index])[index])

  def test_the_subgraph_of_a_signature(self):
    images = helpers.images(3)
    content = helpers.converted("block", "int8")
    for signature in ("predict", "explain"):
      file = FileTensors(content, signature=signature)
      index = find_tensor(
          file, helpers.net("block"), "act", images).tensor.index
      values = file.read(images, [index])[index]
      want = outputs_of(helpers.net("block"), "act", images)
      # Int8 steps, as above; a tensor of something else is off by all of it.
      self.assertLess(tiny.relative_error(values, want), 0.03)

  def test_pictures_of_another_range(self):
    content = foreign_files.converted("block", "int8")
    images = helpers.images()
    file = FileTensors(content, preprocess=lambda batch: batch / 127.5 - 1)
    plain = FileTensors(content).read(images)
    for index, values in file.read((images + 1) * 127.5).items():
      # A pixel that float32 rounds to the next int8 step may move a value by
      # one of its own.
      np.testing.assert_allclose(
          values, plain[index],
          atol=1.01 * file.tensors[index].spec.scale, rtol=1e-5)

  def test_a_state_is_not_carried_from_image_to_image(self):
    inputs = keras.Input((5, 3), batch_size=1)
    x = keras.layers.LSTM(4, unroll=False, name="lstm")(inputs)
    model = tiny.shake(keras.Model(inputs, keras.layers.Dense(2)(x)))
    images = np.random.default_rng(0).normal(size=(1, 5, 3))
    content = foreign_files.convert(model)
    first, *others = Interpreter(content).predict(np.repeat(images, 3, 0))
    for other in others:
      np.testing.assert_array_equal(first, other)
    file = FileTensors(content)
    value, *others = file.read(np.repeat(images, 3, 0), file.outputs)[
        file.outputs[0]]
    for other in others:
      np.testing.assert_array_equal(value, other)
    np.testing.assert_allclose(
        value, model(np.float32(images)).numpy()[0], atol=FLOAT32)


class ErrorsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.file = FileTensors(foreign_files.converted("block", "int8"))

  def test_constants_and_inputs_are_no_tensors_to_read(self):
    parsed = helpers.parsed(foreign_files.converted("block", "int8"))
    graph = parsed.subgraphs[0]
    computed = {int(output) for op in graph.operators for output in op.outputs}
    self.assertEqual({*self.file.tensors}, computed)
    for index in {*range(len(graph.tensors))} - computed:
      with self.assertRaisesRegex(ValueError, f"number {index} is not"):
        self.file.read(helpers.images(1), [index])

  def test_no_such_name(self):
    with self.assertRaisesRegex(ValueError, "0 of the name 'relu'.*act2/Relu"):
      self.file.read(helpers.images(1), ["relu"])

  def test_a_bias_has_the_name_of_what_it_is_added_to(self):
    graph = helpers.parsed(
        foreign_files.converted("flatten")).subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    file = FileTensors(foreign_files.converted("flatten"))
    for file_tensor in file.tensors.values():
      self.assertEqual(file_tensor.name, names[file_tensor.index])
      self.assertEqual(file_tensor.spec.shape[0], 1)

  @parameterized.parameters("tflite", "gpu")
  def test_runtime(self, runtime):
    with self.assertRaisesRegex(ValueError, "runtime must be one of.*xnnpack"):
      FileTensors(foreign_files.converted(), runtime=runtime)

  def test_signature(self):
    content = helpers.bare()
    self.assertLen(FileTensors(content, signature="serve").outputs, 1)
    with self.assertRaisesRegex(ValueError, r"signature must be.*\['serve'\]"):
      FileTensors(content, signature="predict")

  def test_several_inputs(self):
    first, second = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    model = keras.Model([first, second], keras.layers.Add()([first, second]))
    content = helpers.foreign(
        tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with self.assertRaisesRegex(ValueError, "must take one input.*takes"):
      FileTensors(content)

  def test_images(self):
    images = helpers.images(2)
    with self.assertRaisesRegex(ValueError, "1 of 2 hold NaN"):
      images[1, 0, 0, 0] = np.nan
      self.file.read(images)
    with self.assertRaisesRegex(ValueError, r"shape \[at least 1, 8, 8, 2\]"):
      self.file.read(np.zeros([1, 8, 8, 3]))

  @parameterized.parameters((lambda x: 200 * x,), (lambda x: x / 500,))
  def test_range(self, change):
    with self.assertRaisesRegex(
        ValueError, "images must be in the range.*Give `preprocess`"):
      self.file.read(change(helpers.images(4)))

  def test_no_file(self):
    with self.assertRaisesRegex(ValueError, "must be a .tflite file"):
      FileTensors(b"no such thing")
    with self.assertRaises(OSError):
      FileTensors("/no/such/file")


if __name__ == "__main__":
  absltest.main()
