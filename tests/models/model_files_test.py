"""Tests of model_files.py: what an untrusted model file may do when loaded."""

import json
import os
import zipfile
from unittest import mock

import h5py
import keras as keras3
import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized
from tf_keras.protobuf import saved_metadata_pb2

import keras_attr_preserve as kap
from keras_attr_preserve.models.model_files import check_model_file, shortened
from tests import tiny

_layers = keras.layers
ENDINGS = (".h5", ".keras", "")
RAN = "KAP_TEST_CODE_RAN"



# It would leave a trace: a variable of the environment.
CODE = lambda t: (__import__("os").environ.update(KAP_TEST_CODE_RAN="1"), t)[1]  # noqa: E731


def strange(kind: str) -> keras.Model:
  """Models that hold code: as a layer, or deep within one."""
  images = keras.Input((4, 4, 1))
  layer = _layers.Lambda(CODE, name="code")
  if kind == "nested":
    layer = keras.Sequential([keras.Input((4, 4, 1)), layer], name="inner")
  elif kind == "distributed":
    layer = _layers.TimeDistributed(layer)
  elif kind == "shape":
    layer = _layers.Lambda(
        tf_identity, output_shape=CODE, name="code")
  x = _layers.GlobalAveragePooling2D()(layer(images))
  return keras.Model(images, _layers.Dense(2)(x))


def tf_identity(tensor):
  return 1 * tensor


class Scale(_layers.Layer):
  """A custom layer."""

  def call(self, tensor):
    return 2 * tensor


class SafeModeTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)
    self.enter_context(mock.patch.dict(os.environ))

  @parameterized.product(
      kind=("plain", "nested", "distributed", "shape"), ending=ENDINGS)
  def test_code_is_not_run(self, kind, ending):
    path = self.folder / f"net{ending}"
    model = strange(kind)
    model.save(path)
    os.environ.pop(RAN, None)
    with self.assertRaisesRegex(
        ValueError, r"^path '.*net.*': layer 'code' holds Python code \(a "
        r"lambda\), which loading the model would run; if you trust who made "
        "the file, pass safe_mode=False"):
      kap.load_model(path)
    self.assertNotIn(RAN, os.environ)
    if kind == "plain":
      images = np.ones((1, 4, 4, 1), np.float32)
      np.testing.assert_array_equal(
          kap.load_model(path, safe_mode=False)(images), model(images))
      self.assertIn(RAN, os.environ)

  def changed(self, name, change):
    """A .keras or .h5 file whose configuration is changed as text."""
    images = keras.Input((4, 4, 1))
    x = _layers.Conv2D(1, 1, activation="relu", name="layer")(images)
    model = keras.Model(images, _layers.GlobalAveragePooling2D()(x))
    path = self.folder / name
    model.save(path)
    if path.suffix == ".h5":
      with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
      return path
    with zipfile.ZipFile(path) as file:
      contents = {member: file.read(member) for member in file.namelist()}
    config = json.loads(contents["config.json"])
    change(config)
    contents["config.json"] = json.dumps(config).replace(
        "lambda", "l\\u0061mbda").encode()  # As JSON lets one hide a word.
    with zipfile.ZipFile(path, "w") as file:
      for member, content in contents.items():
        file.writestr(member, content)
    return path

  @parameterized.product(
      name=("net.h5", "net.keras"),
      activation=(
          {"module": "os", "class_name": "function", "config": "system",
           "registered_name": "function"},
          {"module": "builtins", "class_name": "function", "config": "exec",
           "registered_name": "function"},
          {"module": "subprocess", "class_name": "Popen", "config": {},
           "registered_name": None},
          {"module": "keras.utils", "class_name": "function",
           "config": "get_file", "registered_name": "function"},
          {"module": "keras_evil.layers", "class_name": "Dense", "config": {},
           "registered_name": None}))
  def test_modules_that_are_not_keras_s(self, name, activation):
    def change(config):
      config["config"]["layers"][1]["config"]["activation"] = activation
    what = activation["config"] or activation["class_name"]
    with self.assertRaisesRegex(
        ValueError, f"layer 'layer' names '{what}' of the module "
        f"'{activation['module']}', which loading the model would import"):
      kap.load_model(self.changed(name, change))

  @parameterized.parameters("net.h5", "net.keras")
  def test_a_function_without_a_layer(self, name):
    def change(config):
      config["config"]["layers"][1]["config"]["activation"] = {
          "class_name": "__lambda__", "config": {"value": ["", None, None]}}
    with self.assertRaisesRegex(ValueError, "'layer' holds Python code"):
      kap.load_model(self.changed(name, change))

  def test_modules_that_a_folder_s_loss_names(self):
    images = keras.Input((4, 4, 1))
    model = keras.Model(images, _layers.GlobalAveragePooling2D()(images))
    model.compile("sgd", "mse")
    path = self.folder / "net"
    model.save(path)
    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString((path / "keras_metadata.pb").read_bytes())
    for node in metadata.nodes:
      config = json.loads(node.metadata)
      if "training_config" in config:
        config["training_config"]["loss"] = {
            "module": "os", "class_name": "function", "config": "system",
            "registered_name": "function"}
        node.metadata = json.dumps(config)
    (path / "keras_metadata.pb").write_bytes(metadata.SerializeToString())
    with self.assertRaisesRegex(ValueError, "'system' of the module 'os'"):
      kap.load_model(path)

  def test_a_name_that_is_given_does_not_vouch_for_another(self):
    def change(config):
      config["config"]["layers"][1]["config"]["activation"] = {
          "module": "os", "class_name": "function", "config": "system",
          "registered_name": "Scale"}
    with self.assertRaisesRegex(ValueError, "'system' of the module 'os'"):
      kap.load_model(self.changed("net.keras", change), {"Scale": Scale})

  @parameterized.parameters(*ENDINGS)
  def test_layers_of_ones_own(self, ending):
    images = keras.Input((4, 4, 1))
    model = keras.Model(images, _layers.GlobalAveragePooling2D()(
        Scale(name="scale")(images)))
    path = self.folder / f"net{ending}"
    model.save(path)
    pixels = np.ones((1, 4, 4, 1), np.float32)
    loaded = kap.load_model(path, {"Scale": Scale})
    self.assertEqual(loaded(pixels).numpy().tolist(), [[2]])  # By hand.
    if ending:
      with self.assertRaisesRegex(
          ValueError, "Scale.*custom_objects.*--custom_objects=MODULE:NAME"):
        kap.load_model(path)
      with keras.utils.custom_object_scope({"Scale": Scale}):
        kap.load_model(path)

  @parameterized.parameters(*ENDINGS)
  def test_plain_models_load(self, ending):
    model = tiny.conv_net()
    model.compile("adam", "mse")
    path = kap.save_model(model, self.folder / f"net{ending}")
    self.assertIsNotNone(kap.load_model(path).optimizer)
    bare = kap.load_model(path, compile=False)
    self.assertTrue(tiny.weights_equal(
        bare.get_weights(), model.get_weights()))
    if ending:  # A SavedModel holds its optimizer as it is.
      self.assertIsNone(getattr(bare, "optimizer", None))


class OtherFilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)

  @parameterized.parameters("net.keras", "net.h5")
  def test_keras_3(self, name):
    model = keras3.Sequential([
        keras3.layers.InputLayer((4, 4, 1)),
        keras3.layers.Conv2D(2, 3, activation="relu", name="last"),
        keras3.layers.GlobalAveragePooling2D()])
    path = self.folder / name
    model.save(path)
    with self.assertRaises(ValueError) as caught:
      kap.load_model(path)
    self.assertRegex(
        str(caught.exception), rf"^path '.*{name}' was saved by Keras 3\..*: "
        rf"make one by kap.from_keras3\('.*{name}'\), and save it by")
    pixels = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    # The cure cures; float32 sums of another order.
    np.testing.assert_allclose(
        kap.from_keras3(path)(pixels),
        keras3.ops.convert_to_numpy(model(pixels)), rtol=1e-5)

  def test_code_in_an_h5_file_of_keras_3(self):
    model = keras3.Sequential([
        keras3.layers.InputLayer((4, 4, 1)),
        keras3.layers.Lambda(lambda t: t, name="code")])
    model.save(self.folder / "net.h5")
    with self.assertRaisesRegex(
        ValueError, "layer 'code' holds Python code .*; replace it by layers"):
      kap.from_keras3(self.folder / "net.h5")

  def test_a_function_without_layers(self):
    model = keras.Sequential([_layers.Dense(2, input_shape=(3,))])
    model.export(self.folder / "net")
    with self.assertRaisesRegex(
        ValueError, "net' holds a function without its layers, as model.export "
        "and tf.saved_model.save write it: save the model itself"):
      kap.load_model(self.folder / "net")

  def test_weights_alone(self):
    model = keras.Sequential([_layers.Dense(2, input_shape=(3,))])
    model.save_weights(self.folder / "net.h5")
    with self.assertRaisesRegex(
        ValueError, "net.h5' holds weights without their model: build"):
      kap.load_model(self.folder / "net.h5")

  def test_no_models(self):
    (self.folder / "text.h5").write_text("no model")
    (self.folder / "empty").mkdir()
    np.savez(self.folder / "arrays.npz", a=np.zeros(3))
    for name, words in (
        ("text.h5", "is no .h5 or .keras file of a Keras model"),
        ("empty", "is a folder without a saved_model.pb"),
        ("arrays.npz", "holds no whole Keras model")):
      with self.assertRaisesRegex(ValueError, f"{name}' {words}"):
        kap.load_model(self.folder / name)
    (self.folder / "empty" / "saved_model.pb").write_bytes(b"_tf_keras_layer")
    with self.assertRaisesRegex(ValueError, "by a Keras before 2.5"):
      check_model_file(self.folder / "empty")
    (self.folder / "empty" / "keras_metadata.pb").write_bytes(b"\x0a\xff")
    with self.assertRaisesRegex(ValueError, "keras_metadata.pb' is damaged"):
      check_model_file(self.folder / "empty")

  def test_shortened(self):
    self.assertEqual(shortened("a\n  b"), "a b")
    self.assertEqual(shortened("abcdef", keep=2), "ab ... ef")


if __name__ == "__main__":
  absltest.main()
