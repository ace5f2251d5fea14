"""Tests of the package as a whole, from a checkout and from a wheel."""

import importlib
import pkgutil
import re
import sys
from importlib import metadata, resources
from pathlib import Path

from absl.testing import absltest

import keras_attr_preserve as kap

ROOMS = {"commands", "conversion", "diagnosis", "firmware", "runtime",
         "tensors", "tflite", "third_party", "verification"}
SCRIPTS = {"litert_process", "tflm_process"}


class PackageTest(absltest.TestCase):

  def test_export_is_part_of_the_package(self):
    self.assertEqual(kap.export.__name__, "keras_attr_preserve.export")
    self.assertIs(sys.modules["keras_attr_preserve.export"], kap.export)
    self.assertNotIn("export", sys.modules)
    for name in kap.export.__all__:
      self.assertTrue(hasattr(kap.export, name), name)
    self.assertContainsSubset(
        {"Explanation", "Interpreter", "convert", "file_sizes",
         "tflm_installed", "verify"}, kap.export.__all__)
    for item in (kap.export.convert, kap.export.Interpreter,
                 kap.export.verify, kap.export.file_sizes):
      self.assertStartsWith(item.__module__, "keras_attr_preserve.export.")

  def test_every_module_of_export_is_importable(self):
    modules = [entry.name for entry in pkgutil.walk_packages(
        kap.export.__path__, "keras_attr_preserve.export.")]
    self.assertEqual(ROOMS, {name.split(".")[2] for name in modules})
    self.assertGreater(len(modules), 50)
    for name in modules:
      module = importlib.import_module(name)
      if name.count(".") > 2 and name.split(".")[-1] not in SCRIPTS:
        self.assertContainsSubset(module.__all__, dir(module))

  def test_types_are_packaged(self):
    self.assertTrue(
        (resources.files("keras_attr_preserve") / "py.typed").is_file())

  def test_c_sources_are_packaged(self):
    sources = resources.files(
        "keras_attr_preserve.export.firmware") / "c_sources"
    for name in ("map.c", "explain.h", "model.cc", "README.md"):
      self.assertTrue((sources / name).is_file(), name)

  def test_version(self):
    self.assertRegex(kap.__version__, r"^\d+\.\d+\.\d+")

  def test_names_are_sorted_and_there(self):
    for module in (kap, kap.export, kap.attribution, kap.evaluation):
      self.assertLen(set(module.__all__), len(module.__all__))
      for name in module.__all__:
        self.assertTrue(hasattr(module, name), f"{module.__name__}.{name}")


class InstalledTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    try:
      self.distribution = metadata.distribution("keras_attr_preserve")
    except metadata.PackageNotFoundError:
      self.skipTest("keras_attr_preserve is not installed here")

  def test_version(self):
    self.assertEqual(self.distribution.version, kap.__version__)

  def test_command(self):
    commands = {entry.name: entry.value
                for entry in self.distribution.entry_points
                if entry.group == "console_scripts"}
    self.assertEqual(
        commands["kap-verify"],
        "keras_attr_preserve.export.commands.verify_command:run")

  def test_needs_nothing_optional(self):
    needed = {re.split(r"[^\w-]", requirement)[0].lower()
              for requirement in self.distribution.requires
              if "extra ==" not in requirement}
    self.assertContainsSubset(
        {"ai-edge-litert", "tensorflow-model-optimization"}, needed)
    self.assertNoCommonElements(
        needed, {"matplotlib", "scikit-learn", "pytest", "tflite-micro"})


class CheckoutTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = Path(kap.__file__).absolute().parent.parent
    if not (self.root / "setup.py").exists():
      self.skipTest("not a checkout")

  def test_setup_lists_every_package(self):
    text = (self.root / "setup.py").read_text()
    listed = set(re.findall(r'^ +"(keras_attr_preserve[\w.]*)",$', text, re.M))
    there = {
        ".".join(path.parent.relative_to(self.root).parts)
        for path in (self.root / "keras_attr_preserve").rglob("__init__.py")}
    beside = {
        ".".join(["keras_attr_preserve", *path.parent.relative_to(
            self.root).parts])
        for path in (self.root / "export").rglob("__init__.py")}
    self.assertEqual(listed, there | beside)

  def test_modules_that_texts_name_exist(self):
    folders = ("keras_attr_preserve", "export", "examples", "tests", "tools")
    modules = [path for folder in folders
               for path in sorted((self.root / folder).rglob("*.py"))]
    texts = [*modules, *self.root.glob("*.md"), *self.root.glob("docs/*.md")]
    endings = {"/".join(path.relative_to(self.root).parts[-depth:])
               for path in modules for depth in range(1, 7)}
    # What tests write into folders of their own.
    endings |= {"worker.py", "own_layers_of_test.py", "setup.py", "_test.py"}
    for text in texts:
      named = set(re.findall(
          r"(?<![\w/.*])[\w/]*\w\.py\b", text.read_text()))
      self.assertEmpty(named - endings, str(text))


if __name__ == "__main__":
  absltest.main()
