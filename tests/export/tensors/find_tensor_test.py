"""Which tensor of a file is which layer of Keras."""

import functools

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.tensors.find_tensor import (
    FileTensors,
    find_tensor,
    layer_tensors,
)
from tests import export_helpers as helpers
from tests import foreign_files, tiny
from tests.shared_files import shared

_twins = functools.cache(foreign_files.twins)


@shared
def _converted_twins(similar: float, mode: str) -> bytes:
  return foreign_files.convert(_twins(similar), mode)


class FindTest(parameterized.TestCase):

  @parameterized.parameters(
      *[(mode, "block") for mode in foreign_files.MODES],
      ("int8", "depthwise"))
  def test_every_type_of_number(self, mode, tail):
    images, model = helpers.images(4), helpers.net(tail)
    match = find_tensor(
        foreign_files.converted(tail, mode), model, "act", images)
    self.assertTrue(match.named)
    self.assertEqual(match.tensor.operator, "CONV_2D")
    self.assertIn("act/", match.tensor.name.split(";")[0])
    integers = mode in foreign_files.INTEGERS
    # Int8 steps; half floats of weights, 2^-11, and float32 sums.
    self.assertLess(match.error, 0.03 if integers else 1e-3)
    # An error of .03 leaves .9995; another layer's features less.
    self.assertGreater(match.cosine, 0.999)

  @parameterized.parameters("float32", "int8")
  def test_numbers_alone_decide_where_names_do_not_help(self, mode):
    images, model = helpers.images(4), helpers.net("depthwise")
    content = foreign_files.converted("depthwise", mode)
    want = {name: match.tensor.index for name, match in layer_tensors(
        content, model, images).items()}
    bare = layer_tensors(foreign_files.renamed(content), model, images)
    self.assertEqual(
        {name: match.tensor.index for name, match in bare.items()}, want)
    self.assertFalse(any(match.named for match in bare.values()))
    self.assertContainsSubset(
        {"act", "depthwise", "act2", "pool", "logits"}, want)

  @parameterized.parameters("float32", "int8")
  def test_names_of_other_layers_do_not_mislead(self, mode):
    # The names of the two layers change places: the numbers must win.
    def change(model):
      first, second = (tensor for tensor in model.subgraphs[0].tensors
                       if tensor.name.startswith((b"net/act/", b"net/act2/"))
                       and list(tensor.shape[:2]) == [1, 8])
      first.name, second.name = second.name, first.name
    images, keras_model = helpers.images(4), helpers.net("block")
    content = foreign_files.converted("block", mode)
    swapped = foreign_files.edited(content, change)
    for layer in ("act", "act2"):
      want = find_tensor(content, keras_model, layer, images)
      got = find_tensor(swapped, keras_model, layer, images)
      self.assertEqual(got.tensor.index, want.tensor.index)
      self.assertEqual((want.named, got.named), (True, False))

  def test_tensors_in_any_order(self):
    images, model = helpers.images(4), helpers.net("block")
    content = foreign_files.converted("block", "int8")
    for seed in range(3):
      shuffled = foreign_files.shuffled(content, seed)
      match = find_tensor(shuffled, model, "act", images)
      self.assertTrue(match.named)
      self.assertEqual(match.tensor.spec.shape, (1, 8, 8, 16))

  @parameterized.parameters(None, 4)
  def test_any_declared_batch(self, batch):
    match = find_tensor(
        foreign_files.converted("flatten", batch=batch),
        helpers.net("flatten"), "act", helpers.images(5))
    # A float file: float32 sums in another order.
    self.assertLess(match.error, 1e-5)

  def test_several_outputs(self):
    model = helpers.net("block")
    wide = keras.Model(model.input, [
        model.output, model.get_layer("act").output,
        model.get_layer("pool").output])
    content = foreign_files.convert(wide, "int8")
    match = find_tensor(content, model, "act", helpers.images(4))
    file = FileTensors(content)
    self.assertLen(file.outputs, 3)
    self.assertIn(match.tensor.index, file.outputs)

  @parameterized.parameters("prune", "quantize")
  def test_layers_behind_wrappers(self, kind):
    model = (tiny.prune(helpers.net("block")) if kind == "prune"
             else helpers.quantize_aware("block"))
    content = (foreign_files.convert(model) if kind == "quantize"
               else foreign_files.converted("block"))
    match = find_tensor(content, model, "act", helpers.images(4))
    self.assertEqual(match.layer, "act")
    # Float32 rounding; a value half way between two of the quantizer's steps
    # may take either. The model without its quantizers is .03 off.
    self.assertLess(match.error, {"prune": 1e-5, "quantize": 3e-3}[kind])

  def test_layers_of_a_nested_model(self):
    inner = helpers.net("gap")
    inputs = keras.Input(inner.input_shape[1:])
    model = keras.Model(
        inputs, keras.layers.Softmax(name="soft")(inner(inputs)))
    matches = layer_tensors(
        foreign_files.convert(model), model, helpers.images(4))
    self.assertContainsSubset({"act", "pool", "logits", "soft"}, matches)
    self.assertEqual(matches["act"].tensor.operator, "CONV_2D")

  def test_own_files_of_two_signatures(self):
    images, model = helpers.images(4), helpers.net("block")
    match = find_tensor(
        helpers.converted("block", "int8"), model, "act", images)
    # Int8 steps, as above.
    self.assertLess(match.error, 0.03)

  def test_the_same_numbers_in_another_shape(self):
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(6, 8, activation="relu", name="conv")(inputs)
    x = keras.layers.Flatten(name="flat")(x)
    model = tiny.shake(keras.Model(inputs, [x, keras.layers.Dense(3)(x)]))
    matches = layer_tensors(
        foreign_files.convert(model, "int8"), model, helpers.images(8))
    self.assertEqual(matches["conv"].tensor.operator, "CONV_2D")
    self.assertLen(matches["conv"].tensor.spec.shape, 4)
    self.assertEqual(matches["flat"].tensor.operator, "RESHAPE")

  def test_the_report_says_how(self):
    images, model = helpers.images(4), helpers.net("block")
    content = foreign_files.converted("block", "int8")
    self.assertRegex(
        str(find_tensor(content, model, "act", images)),
        r"tensor \d+ 'net/act/Relu' \(CONV_2D\), matched by name and numbers, "
        r"relative error 0\.01\d*, cosine 0\.9\d+")
    self.assertIn("matched by numbers", str(find_tensor(
        foreign_files.renamed(content), model, "act", images)))


class TwinsTest(parameterized.TestCase):
  """Two branches of one shape whose outputs are alike."""

  def found(self, similar, mode, rename, layer):
    model, content = _twins(similar), _converted_twins(similar, mode)
    if rename:
      content = foreign_files.renamed(content)
    return find_tensor(content, model, layer, helpers.images(8))

  @parameterized.product(
      case=((1e-3, "float32"), (0.03, "int8")), rename=(False, True))
  def test_numbers_tell_them_apart(self, case, rename):
    left, right = (self.found(*case, rename, layer).tensor.index
                   for layer in ("left", "right"))
    self.assertLess(left, right)  # The converter keeps the order of the graph.

  def test_names_do_where_numbers_cannot(self):
    for layer in ("left", "right"):
      match = self.found(1e-3, "int8", False, layer)
      self.assertIn(f"/{layer}/", match.tensor.name)

  def test_neither_does(self):
    with self.assertRaisesRegex(
        ValueError, "'left' could be several tensors.*Best candidates: .*"
        "relative error 0.016.*; .*relative error 0.016"):
      self.found(1e-3, "int8", True, "left")


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("conv", "float32", False), ("bn", "int8", True), ("conv", "int8", True))
  def test_a_layer_that_was_fused_away(self, layer, mode, rename):
    content = foreign_files.converted("block", mode)
    if rename:
      content = foreign_files.renamed(content)
    model, images = helpers.net("block"), helpers.images(4)
    with self.assertRaisesRegex(
        ValueError, f"layer '{layer}' has no tensor in the file: it was fused "
        "with what follows.*Best candidates: tensor .*relative error 0.7.*"
        "The nearest layer after it that the file holds is 'act': tensor"):
      find_tensor(content, model, layer, images)
    self.assertNotIn(layer, layer_tensors(content, model, images))

  def test_a_layer_whose_relu_does_little(self):
    self.check_little("int8")

  @pytest.mark.slow("files")
  def test_a_layer_whose_relu_does_little_in_floats(self):
    self.check_little("float32")

  def check_little(self, mode):
    # Few of its numbers are negative, so it is near its ReLU's output.
    model = tiny.copy_of(helpers.net("gap"))
    model.get_layer("bn").beta.assign(2 + 0 * model.get_layer("bn").beta)
    content, images = foreign_files.convert(model, mode), helpers.images(4)
    with self.assertRaisesRegex(
        ValueError, "'bn' has no tensor.*relative error 0.1.*is 'act'"):
      find_tensor(content, model, "bn", images)
    # Int8 steps; the ReLU's input is off by .1.
    self.assertLess(find_tensor(content, model, "act", images).error, 0.03)

  def test_another_net_of_the_same_shape(self):
    other = tiny.conv_net(
        tail="block", size=helpers.SIZE, width=helpers.WIDTH, seed=5)
    content = foreign_files.converted("block")
    with self.assertRaisesRegex(ValueError, "the file is not this model's"):
      find_tensor(content, other, "act", helpers.images(4))
    self.assertEmpty(layer_tensors(content, other, helpers.images(4)))

  def test_a_net_of_another_shape(self):
    other = tiny.conv_net(size=helpers.SIZE, width=5)
    with self.assertRaisesRegex(ValueError, "no tensor of that shape"):
      find_tensor(foreign_files.converted(), other, "act", helpers.images(4))

  def test_a_wrong_range_is_not_taken_for_a_match(self):
    model = helpers.net("block")
    file = FileTensors(
        foreign_files.converted("block"), preprocess=lambda x: -x)
    with self.assertRaisesRegex(ValueError, "images of another range"):
      find_tensor(file, model, "act", helpers.images(4))

  def test_a_layer_that_is_dead(self):
    model = tiny.copy_of(helpers.net("block"))
    model.get_layer("act").set_weights([])
    model.get_layer("bn").gamma.assign(0 * model.get_layer("bn").gamma)
    model.get_layer("bn").beta.assign(0 * model.get_layer("bn").beta - 1)
    with self.assertRaisesRegex(ValueError, "nothing but zeros"):
      find_tensor(
          foreign_files.convert(model), model, "act", helpers.images(4))

  def test_no_such_layer(self):
    with self.assertRaisesRegex(ValueError, "layer must be one.*'act'.*'nope'"):
      find_tensor(foreign_files.converted(), helpers.net(), "nope",
                  helpers.images(2))

  def test_arguments(self):
    content, model = foreign_files.converted(), helpers.net()
    with self.assertRaisesRegex(TypeError, "tf_keras.Model"):
      find_tensor(content, "net", "act", helpers.images(2))
    bad = helpers.images(2)
    bad[0] = np.nan
    with self.assertRaisesRegex(ValueError, "1 of 2 hold NaN"):
      find_tensor(content, model, "act", bad)
    with self.assertRaisesRegex(ValueError, "at least 1"):
      find_tensor(content, model, "act", helpers.images(2)[:0])


if __name__ == "__main__":
  absltest.main()
