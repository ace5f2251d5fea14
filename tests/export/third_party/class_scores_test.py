"""Where a foreign file's class scores are, and whose they are."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.tensors.file_tensors import FileTensors
from keras_attr_preserve.export.third_party.class_scores import (
  find_scores,
  follow,
  likely_preprocess,
)
from tests import export_helpers as helpers
from tests import foreign_files, tiny


def file_of(net, mode="float32") -> FileTensors:
  return FileTensors(foreign_files.convert(net, mode))


def wide(*layers: str, head="softmax", **settings) -> keras.Model:
  model = helpers.net("gap", head=head, **settings)
  return keras.Model(model.input, [
      model.output, *(model.get_layer(name).output for name in layers)])


class FindTest(parameterized.TestCase):

  @parameterized.parameters(
      ("softmax", "float32"), ("softmax", "int8"), ("sigmoid", "int8"),
      ("linear", "uint8"))
  def test_logits_are_found_behind_the_softmax(self, head, mode):
    self.check_logits(head, mode)

  @parameterized.parameters("uint8", "int16x8")
  @pytest.mark.slow("files")
  def test_logits_are_found_behind_the_softmax_of_other_integers(self, mode):
    self.check_logits("softmax", mode)

  def check_logits(self, head, mode):
    images, model = helpers.images(), helpers.net("gap", head=head)
    file = FileTensors(foreign_files.converted("gap", mode, head=head))
    scores = find_scores(file)
    self.assertEqual(scores.classes, 3)
    self.assertEqual(scores.squash, {
        "sigmoid": "LOGISTIC", "linear": ""}.get(head, "SOFTMAX"))
    linear = tiny.copy_of(helpers.net("gap"))
    linear.set_weights(model.get_weights())
    values = file.read(images, [scores.logits.index, scores.output.index])
    # Of 8 bits a step of the logits is .011, and one was measured; weights of 8
    # bits cost int16x8 as much. Float32 sums come in another order.
    most = {"float32": 1e-5, "int16x8": 0.02}.get(mode, 0.03)
    np.testing.assert_allclose(
        values[scores.logits.index], linear(images), atol=most)
    # A softmax or sigmoid halves it at least, and has steps of 1/256.
    np.testing.assert_allclose(
        values[scores.output.index], model(images),
        atol=most if head == "linear" else most / 2)

  def test_one_class(self):
    file = file_of(helpers.net("gap", classes=1, head="sigmoid"))
    scores = find_scores(file, 1)
    self.assertEqual((scores.classes, scores.squash), (1, "LOGISTIC"))

  @parameterized.parameters(
      lambda p: p * 0.9 + 0.05, lambda p: tf.clip_by_value(p, 0.1, 0.9),
      lambda p: keras.layers.Concatenate()([1 - p, p]))
  def test_what_is_computed_from_probabilities_has_no_logits(self, change):
    model = helpers.net("gap", head="softmax")
    file = file_of(keras.Model(model.input, change(model.output)))
    with self.assertRaisesRegex(
        ValueError, "from the probabilities of a softmax or sigmoid"):
      find_scores(file)

  def test_what_mixes_probabilities_with_others_has(self):
    model = helpers.net("gap")
    file = file_of(keras.Model(
        model.input, model.output * tf.nn.softmax(model.output)))
    self.assertEqual(find_scores(file).squash, "")

  @parameterized.parameters("float32", "int8")
  def test_of_several_outputs_the_one_that_fits(self, mode):
    file = file_of(wide("act", "pool"), mode)
    self.assertLen(file.outputs, 3)
    scores = find_scores(file, 3)
    self.assertEqual((scores.classes, scores.squash), (3, "SOFTMAX"))
    with self.assertRaisesRegex(
        ValueError, r"2 outputs that could be its class scores; it gives .*"
        r"\[1, 8, 8, 16\].*Name one by `output`"):
      find_scores(file)
    named = find_scores(file, None, scores.output.name)
    self.assertEqual(named, scores)
    self.assertEqual(find_scores(file, 15).classes, 16)  # 16 = 15 and one.

  def test_no_output_fits(self):
    file = file_of(helpers.net("gap"))
    with self.assertRaisesRegex(ValueError, "0 outputs.*for 7 classes"):
      find_scores(file, 7)
    model = helpers.net("gap")
    features = keras.Model(model.input, model.get_layer("act").output)
    with self.assertRaisesRegex(ValueError, "0 outputs"):
      find_scores(file_of(features))


class FollowTest(parameterized.TestCase):

  def test_by_hand(self):
    scores = np.array([[1.0, 2, 0], [0, 0, 3], [5, 1, 1]])
    self.assertAlmostEqual(follow(scores, scores), 1)
    self.assertAlmostEqual(follow(scores, -scores), -1)
    # A constant over all images or all classes says nothing.
    shifted = scores + [[10], [20], [30]] + [[100, 200, 300]]
    self.assertAlmostEqual(follow(scores, shifted), 1)

  def test_chance(self):
    draws = np.random.default_rng(0).normal(size=(2, 200, 10))
    # Of 200 x 10 numbers chance has a standard error of .024.
    self.assertLess(abs(follow(*draws)), 0.1)

  def test_too_few_to_tell(self):
    draws = np.random.default_rng(0).normal(size=(2, 200, 10))
    self.assertTrue(np.isnan(follow(draws[0, :1], draws[1, :1])))
    self.assertTrue(np.isnan(follow(draws[0, :4, :2], draws[1, :4, :2])))
    self.assertFalse(np.isnan(follow(draws[0, :5, :1], draws[1, :5, :1])))
    self.assertTrue(np.isnan(follow(np.ones([9, 3]), draws[0, :9, :3])))

  def test_likely_preprocess(self):
    images = np.random.default_rng(0).uniform(-1, 1, (9, 4))
    weights = np.random.default_rng(1).normal(size=(4, 3))

    def run(changed):
      if changed.max() > 300:
        raise ValueError("out of range")
      return np.maximum(changed - 100, 0) @ weights
    reference = run((images + 1) * 127.5)
    self.assertEqual(
        likely_preprocess(run, images, reference, 0.8), "(images + 1) * 127.5")
    self.assertIsNone(likely_preprocess(
        run, images, np.random.default_rng(2).normal(size=(9, 3)), 0.9))


if __name__ == "__main__":
  absltest.main()
