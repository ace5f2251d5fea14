"""Tests of verify.py: a file's maps held against its teacher's."""

import hashlib
import json
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized
from scipy import stats

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny


def raw_maps(content, teacher, images):
  """Both sides' maps of the teacher's top classes, and both sides' logits."""
  logits = teacher.predict(images, verbose=0)
  top = logits.argmax(1)
  maps, file_logits = kap.export.Interpreter(content).explain(images, top)
  reference = kap.attribution.grad_cam(teacher, images, top, helpers.LAYER)
  return reference, maps, logits, file_logits


class ScoresTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # The file is of another model than the teacher: scores below 1, other top
    # classes.
    cls.images = helpers.images(24)
    cls.teacher = helpers.net()
    cls.content = helpers.converted("gap", "int8", seed=5)
    cls.report = kap.export.verify(
        cls.content, cls.teacher, helpers.wcam(), cls.images)

  def test_recomputed_by_hand(self):
    reference, maps, logits, file_logits = raw_maps(
        self.content, self.teacher, self.images)
    alive = maps.any((1, 2))
    self.assertTrue(reference.any((1, 2)).all())
    self.assertGreater(alive.sum(), 10)
    scores = self.report.scores
    for i in np.flatnonzero(alive):
      want, got = (np.float64(side[i].ravel()) for side in (reference, maps))
      cosine = want @ got / np.sqrt((want @ want) * (got @ got))
      # The formulas are float64; both sides' float32 maps may be rounded anew
      # in batches of another size.
      self.assertAlmostEqual(scores["cosine"][i], cosine, places=6)
      self.assertAlmostEqual(
          scores["pearson"][i], np.corrcoef(want, got)[0, 1], places=6)
      self.assertAlmostEqual(
          scores["spearman"][i], stats.spearmanr(want, got)[0], places=6)
      self.assertAlmostEqual(
          scores["l2"][i], np.sqrt(2 - 2 * cosine), places=6)
    np.testing.assert_array_equal(
        scores["same_class"], logits.argmax(1) == file_logits.argmax(1))
    # Images of both kinds: a wrong count would show.
    self.assertBetween(self.report.prediction_agreement, 0.01, 0.99)
    # Another model's maps: at scores of 1 a wrong formula would not show.
    self.assertLess(self.report.summary()["cosine"]["mean"], 0.99)

  def test_both_explain_the_teacher_s_class(self):
    logits = self.teacher.predict(self.images, verbose=0)
    runner = kap.export.Interpreter(self.content)
    own_maps, _ = runner.explain(self.images)  # The file's own top classes.
    reference = kap.attribution.grad_cam(
        self.teacher, self.images, logits.argmax(1), helpers.LAYER)
    own_cosines = kap.evaluation.agreement(reference, own_maps)["cosine"]
    differ = self.report.scores["same_class"] == 0
    self.assertTrue(differ.any())
    self.assertFalse(np.allclose(
        own_cosines[differ], self.report.scores["cosine"][differ]))
    np.testing.assert_allclose(
        own_cosines[~differ], self.report.scores["cosine"][~differ])

  def test_the_facts(self):
    facts = self.report.facts
    self.assertEqual(
        {key: facts[key] for key in (
            "images", "bytes", "sha256", "runtime", "layer", "method", "mode",
            "road", "teacher_dead")},
        {"images": 24, "bytes": len(self.content),
         "sha256": hashlib.sha256(self.content).hexdigest(),
         "runtime": "xnnpack", "layer": "act", "method": "swa",
         "mode": "int8", "road": "tail", "teacher_dead": 0.0})
    self.assertEqual(
        facts["images_range"],
        [float(self.images.min()), float(self.images.max())])
    low, high = facts["input_range"]
    self.assertBetween(low, -6, -2)
    self.assertBetween(high, 2, 6)  # Of normally distributed numbers.

  def test_all_that_convert_wrote_is_told(self):
    class Told(kap.export.Interpreter):
      def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.metadata = {
            **self.metadata, "why": "the shortest", "tried": [1, {"a": 2}]}

    with mock.patch(
        "keras_attr_preserve.export.verification.explainers.Interpreter", Told):
      report = kap.export.verify(
          self.content, self.teacher, helpers.wcam(), self.images)
    self.assertEqual(report.facts["why"], "the shortest")
    self.assertRegex(str(report), r"(?m)^why +the shortest$")
    self.assertEqual(report.to_dict()["tried"], [1, {"a": 2}])

  def test_a_path(self):
    folder = tiny.folder(self)
    (folder / "net.tflite").write_bytes(self.content)
    report = kap.export.verify(
        folder / "net.tflite", self.teacher, helpers.wcam(), self.images)
    self.assertEqual(report.to_dict(), self.report.to_dict())
    with self.assertRaises(FileNotFoundError):
      kap.export.verify(
          folder / "missing.tflite", self.teacher, helpers.wcam(), self.images)

  def test_saved(self):
    folder = tiny.folder(self)
    self.report.save(folder / "report")
    figures = json.loads((folder / "report" / "report.json").read_text())
    self.assertEqual(figures["sha256"],
                     hashlib.sha256(self.content).hexdigest())
    rows = (folder / "report" / "report.csv").read_text().splitlines()
    self.assertLen(rows, 25)
    self.assertTrue((folder / "report" / "worst.png").exists())

  def test_the_worst_images(self):
    examples = self.report.examples
    self.assertLen(examples.numbers, 5)
    self.assertEqual(examples.numbers, self.report.worst_images())
    reference, maps, _, _ = raw_maps(
        self.content, self.teacher, self.images)
    np.testing.assert_array_equal(
        examples.images, self.images[examples.numbers])
    np.testing.assert_array_equal(
        examples.reference, reference[examples.numbers])
    np.testing.assert_array_equal(examples.maps, maps[examples.numbers])
    self.assertEqual(
        list(examples.value_range), self.report.facts["images_range"])

  def test_the_teacher_is_left_as_it_came(self):
    teacher = tiny.conv_net(tail="block", size=helpers.SIZE)
    # Eagerly: a step is not traced first.
    teacher.compile("sgd", "mse", run_eagerly=True)
    teacher.get_layer("bn").trainable = False
    before = teacher.get_weights()
    trainable = [weight.name for weight in teacher.trainable_weights]
    optimizer = teacher.optimizer
    kap.export.verify(
        helpers.converted(), teacher, helpers.wcam(), self.images)
    self.assertTrue(tiny.weights_equal(teacher.get_weights(), before))
    self.assertEqual(
        [weight.name for weight in teacher.trainable_weights], trainable)
    self.assertIs(teacher.optimizer, optimizer)
    teacher.train_on_batch(self.images, np.zeros([24, 3]))
    self.assertFalse(tiny.weights_equal(teacher.get_weights(), before))


class KindsTest(parameterized.TestCase):

  @parameterized.product(tail=("gap", "block"), runtime=helpers.LITERT_RUNTIMES)
  def test_a_faithful_file(self, tail, runtime):
    report = kap.export.verify(
        helpers.converted(tail), helpers.net(tail), helpers.wcam(),
        helpers.images(), runtime=runtime)
    report.require(cosine_worst=1 - 1e-9, spearman_worst=0.9999, l2_worst=1e-4,
                   prediction_agreement=1, dead=0)
    self.assertEqual(report.facts["runtime"], runtime)

  @helpers.needs_tflm
  def test_tflm(self):
    report = kap.export.verify(
        helpers.converted("gap", "int8", target="microcontroller"),
        helpers.net(), helpers.wcam(), helpers.images(), runtime="tflm")
    report.require(cosine_worst=0.999)
    self.assertEqual(report.facts["runtime"], "tflm")

  def test_equal_weighted(self):
    report = kap.export.verify(
        helpers.converted("block", "float32", "ewa"), helpers.net("block"),
        helpers.wcam("ewa"), helpers.images())
    report.require(cosine_worst=1 - 1e-9)
    self.assertEqual(report.facts["method"], "ewa")

  def test_a_head_with_an_activation(self):
    self.check_head("softmax")

  @pytest.mark.slow("files")
  def test_a_head_of_sigmoids(self):
    self.check_head("sigmoid")

  def check_head(self, head):
    report = kap.export.verify(
        helpers.converted("gap", head=head), helpers.net(head=head),
        helpers.wcam(), helpers.images())
    report.require(cosine_worst=1 - 1e-9, prediction_agreement=1)
    # The linear model is the same teacher.
    other = kap.export.verify(
        helpers.converted("gap", head=head), helpers.net(), helpers.wcam(),
        helpers.images())
    np.testing.assert_allclose(
        report.scores["cosine"], other.scores["cosine"])

  def test_one_logit(self):
    linear, model = (
        tiny.conv_net(size=helpers.SIZE, classes=1, head=head)
        for head in ("linear", "sigmoid"))
    logits = linear.predict(helpers.images(), verbose=0)
    bias = model.get_layer("logits").bias
    bias.assign_sub([np.median(logits)])  # Half of the images on each side.
    content = kap.export.convert(model, helpers.wcam(), mode="float32")
    report = kap.export.verify(
        content, model, helpers.wcam(), helpers.images())
    report.require(cosine_worst=1 - 1e-9, prediction_agreement=1)

  @parameterized.parameters(True, False)
  def test_the_larger_map_is_brought_down(self, file_is_smaller):
    images = keras.Input((helpers.SIZE, helpers.SIZE, 2))
    x = keras.layers.Conv2D(
        4, 3, strides=2, padding="same", activation="relu", name="act")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    small = tiny.shake(keras.Model(images, keras.layers.Dense(3)(x)), 1)
    if file_is_smaller:
      teacher, content = helpers.net(), kap.export.convert(
          small, helpers.wcam(), mode="float32")
    else:
      teacher, content = small, helpers.converted()
    reference, maps, _, _ = raw_maps(content, teacher, helpers.images())
    self.assertEqual({reference.shape[1:], maps.shape[1:]}, {(4, 4), (8, 8)})

    def down(one):
      # An antialiased bilinear resize by half is a tent of (1 3 3 1) / 8, of
      # what of it lies inside at the edges.
      if one.shape[1] == 4:
        return one
      tent = np.zeros([4, 8])
      for i in range(4):
        for j, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1)):
          if 0 <= j < 8:
            tent[i, j] = weight
      tent /= tent.sum(1, keepdims=True)
      return np.einsum("ij,bjk,lk->bil", tent, one, tent)

    report = kap.export.verify(
        content, teacher, helpers.wcam(), helpers.images())
    want = kap.evaluation.agreement(down(reference), down(maps))
    np.testing.assert_allclose(
        report.scores["cosine"], want["cosine"], 1e-5)

  def test_a_file_of_somebody_else_s(self):
    model = helpers.net()
    content = helpers.plainly_converted(
        keras.Model(model.inputs, {"logits": model.outputs[0]}), "float32")
    for file in (content, helpers.foreign(content)):
      report = kap.export.verify(
          file, model, helpers.wcam(), helpers.images(), judges=["occlusion"],
          judge_images=2)
      report.require(
          cosine_worst=0.9999, prediction_agreement=1, dead=0,
          occlusion_cosine_worst=0.9999)
      self.assertEqual(report.facts["layer"], "act")

  def test_layers_of_other_names(self):
    wcam = kap.WCAM("act2", student_layer="act")
    content = kap.export.convert(helpers.net(), wcam, mode="float32")
    report = kap.export.verify(
        content, helpers.net("block"), wcam, helpers.images())
    self.assertEqual(report.facts["layer"], "act2")
    reference = kap.attribution.grad_cam(
        helpers.net("block"), helpers.images(), None, "act2")
    top = helpers.net("block").predict(helpers.images(), verbose=0).argmax(1)
    maps, _ = kap.export.Interpreter(content).explain(helpers.images(), top)
    np.testing.assert_allclose(
        report.scores["cosine"],
        kap.evaluation.agreement(reference, maps)["cosine"])


class DamageTest(absltest.TestCase):

  def test_our_metadata(self):
    """A file of ours whose name is blotted out is not another's."""
    content = helpers.converted("gap", "int8")
    at = content.rfind(b"keras_attr_preserve")
    damaged = content[:at] + b"x" + content[at + 1:]
    for runtime in ("xnnpack", "all"):
      with self.assertRaisesRegex(ValueError, "damaged"):
        kap.export.verify(
            damaged, helpers.net(), helpers.wcam(), helpers.images(),
            runtime=runtime)
    with self.assertRaisesRegex(ValueError, "teacher must be .*damaged"):
      kap.export.verify(
          content, damaged, helpers.wcam(), helpers.images())


class DeadMapsTest(absltest.TestCase):

  def nets(self):
    """A teacher alive, and a model that has no positive weight for class 0."""
    teacher = tiny.conv_net(size=helpers.SIZE, seed=1)
    dead = tiny.copy_of(teacher)
    kernel = dead.get_layer("logits").kernel
    kernel.assign(np.where([True, False, False], -np.abs(kernel), kernel))
    return teacher, dead

  def test_counted(self):
    teacher, dead = self.nets()
    images = helpers.images(40, seed=3)
    # Half of the images of class 0, by the bias.
    logits = teacher.predict(images, verbose=0)
    margin = np.median(logits[:, 0] - logits[:, 1:].max(1))
    teacher.get_layer("logits").bias.assign_sub([margin, 0, 0])
    top = teacher.predict(images, verbose=0).argmax(1)
    # The median makes it half; away from the ends both kinds are many.
    self.assertBetween((top == 0).mean(), 0.3, 0.7)
    report = kap.export.verify(
        kap.export.convert(dead, helpers.wcam(), mode="float32"), teacher,
        helpers.wcam(), images)
    alive = kap.attribution.grad_cam(
        teacher, images, top, helpers.LAYER).any((1, 2))
    self.assertBetween(alive.sum(), 30, 39)  # Some of the teacher's are dead.
    lost = alive & (top == 0)
    self.assertAlmostEqual(report.dead, lost.sum() / alive.sum())
    self.assertAlmostEqual(report.facts["teacher_dead"], 1 - alive.mean())
    np.testing.assert_array_equal(report.scores["cosine"][lost], 0)
    np.testing.assert_array_equal(
        np.isnan(report.scores["cosine"]), ~alive)
    np.testing.assert_allclose(
        report.scores["cosine"][alive & ~lost], 1, 1e-6)
    with self.assertRaisesRegex(
        kap.evaluation.ShortfallError, "dead 0.*, at most 0.1 required"):
      report.require(dead=0.1)

  def test_a_dead_teacher_is_no_fault_of_the_file(self):
    teacher, dead = self.nets()
    images = helpers.images(40, seed=3)
    dead.get_layer("logits").bias.assign([1e3, 0, 0])  # Always class 0.
    report = kap.export.verify(
        kap.export.convert(teacher, helpers.wcam(), mode="float32"), dead,
        helpers.wcam(), images)
    self.assertEqual(report.facts["teacher_dead"], 1)
    self.assertEqual(report.dead, 0)
    self.assertTrue(np.isnan(report.scores["cosine"]).all())
    folder = tiny.folder(self)
    report.save(folder)
    figures = json.loads((folder / "report.json").read_text())
    self.assertIsNone(figures["agreement"]["cosine"]["mean"])
    with self.assertRaises(kap.evaluation.ShortfallError):
      report.require(cosine=0.5)  # Nothing is shown, so nothing passes.


class ErrorsTest(parameterized.TestCase):

  def verify(self, content=None, teacher=None, wcam=None, images=None, **more):
    return kap.export.verify(
        helpers.converted() if content is None else content,
        teacher or helpers.net(), wcam or helpers.wcam(),
        helpers.images() if images is None else images, **more)

  def test_another_method(self):
    with self.assertRaisesRegex(
        ValueError, "wcam has method 'ewa', but the file was converted for "
        "'swa'"):
      self.verify(wcam=helpers.wcam("ewa"))

  def test_other_classes(self):
    for classes in (1, 4):
      with self.assertRaisesRegex(
          ValueError, f"teacher must have the file's 3 classes; got {classes}"):
        self.verify(teacher=helpers.net(classes=classes))

  def test_no_file(self):
    with self.assertRaisesRegex(ValueError, "must be a .tflite file"):
      self.verify(b"none")
    with self.assertRaisesRegex(ValueError, "damaged"):
      self.verify(helpers.converted()[:1000])

  def test_teacher(self):
    with self.assertRaisesRegex(TypeError, "teacher must be a tf_keras.Model"):
      self.verify(teacher=3)
    with self.assertRaises(FileNotFoundError):
      self.verify(teacher="missing.tflite")
    with self.assertRaisesRegex(
        ValueError, "teacher must be a tf_keras model, or a .tflite file"):
      self.verify(teacher=b"none")

  def test_wcam(self):
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM"):
      self.verify(wcam="act")

  def test_layer(self):
    with self.assertRaisesRegex(ValueError, "layer 'relu9'"):
      self.verify(wcam=kap.WCAM("relu9", student_layer="act"))

  def test_images(self):
    with self.assertRaisesRegex(
        ValueError, r"images must have shape \[at least 1, 8, 8, 2\]"):
      self.verify(images=np.zeros((3, 8, 8, 1)))
    with self.assertRaisesRegex(ValueError, "images must be finite; 1 of 2"):
      self.verify(images=np.stack(
          [helpers.images(1)[0], np.full((8, 8, 2), np.nan)]))
    with self.assertRaisesRegex(ValueError, "images must be in the range"):
      self.verify(helpers.converted("gap", "int8"),
                  images=helpers.images() * 255)

  def test_another_input_size(self):
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      self.verify(teacher=tiny.conv_net(size=6), images=tiny.images(2))

  def test_runtime(self):
    with self.assertRaisesRegex(ValueError, "runtime must be one of"):
      self.verify(runtime="gpu")


if __name__ == "__main__":
  absltest.main()
