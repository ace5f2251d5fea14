"""Tests of the files that the experiments' programs read beside a model."""

import functools
import json
import tempfile
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from tests import export_helpers as helpers
from tests.experiment_helpers import run_inside

NAMES = [str(digit) for digit in range(10)]


def setUpModule():
  helpers.skip_without_examples()


@functools.cache
def net():
  from examples.experiment.runs import nets
  return nets.build("small", size=32, classes=10, width=0.25)


class KnownTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    net().save(self.folder / "teacher.h5")

  def beside(self, **changes):
    """Writes `train_teacher`'s report for a model that knows nothing."""
    (self.folder / "teacher.json").write_text(json.dumps({
        "pixel_range": [-1, 1], "class_names": NAMES, "layer": "relu3",
        "settings": {"data": "digits", "size": 32, "classes": None},
        "validation": {"map": 0.0}, **changes}))

  def run_export(self, *arguments):
    """Converts, but for the converter; returns what happened, and its images.
    """
    with mock.patch(
        "keras_attr_preserve.export.convert", return_value=helpers.converted(),
    ) as convert:
      done = run_inside(
          "export_tflite", f"--model={self.folder / 'teacher.h5'}",
          "--limit=8", f"--output={self.folder / 'net.tflite'}", *arguments)
    return done, convert.call_args

  def test_all_is_read(self):
    self.beside()
    done, call = self.run_export()
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(call.args[1].layers, ("relu3",))
    images = call.kwargs["representative_images"]
    self.assertEqual(images.shape, (8, 32, 32, 3))
    # Black and white of scenes, where 0..1 would begin at 0.
    self.assertLess(images.min(), 0)
    self.assertBetween(images.max(), 0, 1)
    done, call = self.run_export("--layer=relu2", "--pixel_range=-1,1")
    self.assertEqual(call.args[1].layers, ("relu2",))

  @parameterized.parameters(
      (("--pixel_range=0,1",), "--pixel_range is 0,1, but .* says -1,1"),
      (("--size=48",), "--size is 48, but '.*teacher.json' says 32"),
      (("--classes=3,1",), "says that it scores 0, 1, .*--classes give 3, 1|"
       "scores 10 classes; --data and --classes give 2: 3, 1"))
  def test_what_differs(self, flags, words):
    self.beside()
    done, call = self.run_export(*flags)
    self.assertEqual((done.returncode, call), (1, None))
    self.assertRegex(done.stderr, words)

  def test_classes_in_another_order(self):
    self.beside(class_names=NAMES[::-1])
    done, call = self.run_export()
    self.assertIsNone(call)
    self.assertRegex(done.stderr, "says that it scores 9, 8, .* give 0, 1")

  def test_what_is_neither_given_nor_known(self):
    done, call = self.run_export("--size=32")
    self.assertIsNone(call)
    self.assertRegex(
        done.stderr, "--pixel_range must be what --model takes for black and "
        "for white, .*: no file '.*teacher.json' says it")
    done, call = self.run_export("--size=32", "--pixel_range=0,1")
    self.assertRegex(done.stderr, "--layer must name the layer")

  def test_a_net_that_is_worth_less_than_it_was(self):
    self.beside(validation={"map": 0.99, "pictures": 8})
    done, call = self.run_export()
    self.assertIsNone(call)
    self.assertRegex(
        done.stderr, r"--model has a mean average precision of 0\.\d+ on 8 "
        "validation pictures, and had 0.990 when '.*teacher.json' was written")

  def test_code_in_a_net(self):
    import tf_keras as keras
    images = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda t: t)(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(images, keras.layers.Dense(10)(x)).save(
        self.folder / "teacher.h5")
    self.beside()
    done, _ = self.run_export()
    self.assertRegex(done.stderr, "--model: .* holds Python code .*--unsafe")


if __name__ == "__main__":
  absltest.main()
