"""Exports for a microcontroller that the tests share, made once a process."""

import atexit
import functools
import io
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import tf_keras as keras

import keras_attr_preserve as kap
from keras_attr_preserve.export.firmware.device_model import DeviceModel
from keras_attr_preserve.export.firmware.microcontroller import microcontroller
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared

NAME = "tiny_net"
LABELS = ["cat", 'a "dog" \\ n', "vögel??/"]
# For each kind how the map is made.
KINDS = {"linear": "linear", "flattened": "linear", "single": "linear",
         "hidden": "hidden", "gradient": "gradient", "ewa": "ewa",
         "aware": "linear", "aware_hidden": "hidden"}
# Each way to make a map, and one logit. The others differ in conversion.
QUICK = ("linear", "single", "hidden", "gradient", "ewa")
SLOW = tuple(kind for kind in KINDS if kind not in QUICK)


@functools.cache
def net(kind: str) -> keras.Model:
  """Builds the model of a kind."""
  if kind == "aware":
    return helpers.quantize_aware("gap")
  if kind == "aware_hidden":
    return helpers.quantize_aware("flatten")
  if kind == "single":
    return helpers.net("gap", classes=1)
  if kind == "flattened":
    inner = tiny.copy_of(helpers.net("gap"))  # Its layers are shaken below.
    x = inner.get_layer(helpers.LAYER).output
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
    x = keras.layers.Dense(3, "softmax")(x)
    return tiny.shake(keras.Model(inner.input, x), 4)
  return helpers.net({"hidden": "flatten", "gradient": "block"}.get(
      kind, "gap"))


def wcam(kind: str) -> kap.WCAM:
  """Returns how the model of a kind was matched."""
  return helpers.wcam("ewa" if kind == "ewa" else "swa")


def export(kind: str, folder: Path, **settings) -> dict:
  """Exports a kind into a folder."""
  arguments = {"name": NAME, "test_images": helpers.images(6, seed=5)}
  if not kind.startswith("aware"):
    arguments["representative_images"] = helpers.calibration()
  return microcontroller(
      net(kind), wcam(kind), folder, **{**arguments, **settings})


@shared
def _packed(kind: str) -> bytes:
  """An export, its folder in a zip file."""
  packed = io.BytesIO()
  with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(
      packed, "w") as file:
    export(kind, Path(place) / "out",
           labels=LABELS[:2] if kind == "single" else LABELS)
    for path in (Path(place) / "out").iterdir():
      file.write(path, path.name)
  return packed.getvalue()


@functools.cache
def exported(kind: str) -> Path:
  """Returns the folder of an export. Do not change it."""
  place = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, place, ignore_errors=True)
  with zipfile.ZipFile(io.BytesIO(_packed(kind))) as file:
    file.extractall(place)
  return Path(place)


def export_again(
    kind: str, folder: Path, arena_known: bool = True, **settings) -> dict:
  """As `export`, with the .tflite file that `exported` has made.

  Two things are not measured again: the arena, where `arena_known`, and the
  answers of TFLite Micro. The reference kernels replace TFLite Micro.
  """
  module, known = sys.modules[microcontroller.__module__], facts(kind)
  content = (exported(kind) / f"{NAME}.tflite").read_bytes()
  arena = known["bytes"]["arena"], known["arena"]
  with mock.patch.multiple(
      module, _converted=lambda *_: content,
      _arena=(lambda _: arena) if arena_known else module._arena,
      DeviceModel=functools.partial(DeviceModel, runtime="reference")):
    return export(kind, folder, **settings)


def facts(kind: str) -> dict:
  """What an export's JSON holds."""
  return json.loads((exported(kind) / f"{NAME}.json").read_text())


@functools.cache
def device(kind: str, runtime: str = "reference") -> DeviceModel:
  """The exported file, run on this computer."""
  return DeviceModel(
      (exported(kind) / f"{NAME}.tflite").read_bytes(), runtime)
