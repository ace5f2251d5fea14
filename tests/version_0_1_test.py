"""What version 0.1 made still loads: models, files; and its names are known.

A tool of that version, in the history before the house was rebuilt, made them.
"""

import functools
import inspect
import io
import json
import re
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import tiny

FIXTURES = Path(__file__).parent / "fixtures"
_ARCHIVE = FIXTURES / "version_0_1.zip"
_NAMES = json.loads((FIXTURES / "names_0_1.json").read_text())


@functools.cache
def content(name: str) -> bytes:
  with zipfile.ZipFile(_ARCHIVE) as archive:
    return archive.read(name)


def array(name: str) -> np.ndarray:
  return np.load(io.BytesIO(content(name)), allow_pickle=False)


def _listed(folder: str, ending: str) -> list[str]:
  with zipfile.ZipFile(_ARCHIVE) as archive:
    return sorted({
        name[len(folder):-len(ending)] for name in archive.namelist()
        if name.startswith(folder) and name.endswith(ending)
        and "/" not in name[len(folder):]})


MODELS = _listed("models/", ".npy")
FILES = _listed("files/", ".tflite")
OFTEN = ("plain.h5", "pqat.h5", "cqat.h5", "pruned.keras", "pqat_folder")


class ModelsTest(parameterized.TestCase):

  def check(self, name):
    with tempfile.TemporaryDirectory() as folder:
      # The tool named "plain.h5" twice: plain.h5.h5.
      path = f"models/{name}{Path(name).suffix}"
      with zipfile.ZipFile(_ARCHIVE) as archive:
        archive.extractall(folder, [
            inside for inside in archive.namelist()
            if inside == path or inside.startswith(f"{path}/")])
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of zeros that tfmot had not kept.
        model = kap.load_model(Path(folder) / path)
    # Rounding alone: another machine sums in another order.
    np.testing.assert_allclose(
        model(tiny.images(8)).numpy(), array(f"models/{name}.npy"), atol=1e-5)

  @parameterized.parameters(*OFTEN)
  def test_loads_and_answers_alike(self, name):
    self.assertIn(name, MODELS)
    self.check(name)

  @parameterized.parameters(*(name for name in MODELS if name not in OFTEN))
  @pytest.mark.slow("saving")
  def test_the_others_load_and_answer_alike(self, name):
    self.check(name)


class FilesTest(parameterized.TestCase):

  def test_every_mode_and_way_is_there(self):
    self.assertLen(FILES, 44)

  @parameterized.parameters(*FILES)
  def test_explains_alike(self, name):
    interpreter = kap.export.Interpreter(content(f"files/{name}.tflite"))
    explained = interpreter.explain(array("images.npy"))
    # Kernels of another machine round otherwise, in integers by a step.
    tolerance = 1e-4 if "float32" in name else 0.1
    np.testing.assert_allclose(
        explained.logits, array(f"files/{name}-logits.npy"), atol=tolerance)
    maps = array(f"files/{name}-maps.npy")
    np.testing.assert_allclose(
        explained.maps, maps, atol=tolerance * max(1, maps.max()))


class NamesTest(absltest.TestCase):
  """docs/migration.md says where each name, keyword and flag went."""

  def setUp(self):
    super().setUp()
    page = Path(kap.__file__).parents[1] / "docs" / "migration.md"
    if not page.exists():
      self.skipTest("not a checkout")
    self.told = set(re.findall(r"^\| `([^`]+)` \|", page.read_text(), re.M))

  def _value(self, name: str):
    value = kap
    for step in name.split(".")[1:]:
      if step in getattr(value, "__dataclass_fields__", ()):
        return None  # A field, which a class need not have.
      value = getattr(value, step)
    return value

  def test_names_and_keywords(self):
    for name, keywords in _NAMES["names"].items():
      with self.subTest(name):
        if name in self.told:
          continue
        value = self._value(name)
        if not keywords:
          continue
        there = set(inspect.signature(value).parameters)
        gone = [keyword for keyword in keywords if keyword not in there
                and f"{name}({keyword}=)" not in self.told]
        self.assertEmpty(gone)

  def test_flags(self):
    root = Path(kap.__file__).parents[1]
    texts = "".join(
        path.read_text() for folder in ("examples", "export/commands")
        for path in sorted((root / folder).rglob("*.py")))
    for path, names in _NAMES["flags"].items():
      for name in names:
        with self.subTest(f"{path} --{name}"):
          self.assertTrue(
              f'"{name}"' in texts or f"--{name}" in self.told)


if __name__ == "__main__":
  absltest.main()
