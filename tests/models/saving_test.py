"""Tests of saving.py: every kind of model, there and back."""

import os
import resource
import subprocess
import sys
from unittest import mock

import h5py
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, PreserveAttribution
from keras_attr_preserve.models.layers import unwrapped_name
from keras_attr_preserve.models.preserving_quantizers import (
    by_name,
    preserved_kind,
)
from keras_attr_preserve.models.saving import load_model, save_model
from tests import tiny
from tests.places import ROOT

COMBINE = tfmot.experimental.combine
CLUSTERING = tfmot.clustering.keras
PICTURES, LABELS = tiny.images(8), tiny.labels(8)


def _kernels(model):
  """The kernels, by the names of their plain layers."""
  return {unwrapped_name(layer.name): weight.numpy()
          for layer in model.layers
          for name, weight in by_name(layer.weights).items()
          if name in ("kernel", "depthwise_kernel")}


def _sparse(model):
  for layer in model.layers:
    for weight in layer.weights:
      if "kernel" in weight.name:
        value = weight.numpy()
        weight.assign(value * (abs(value) > np.median(abs(value))))
  return model


def _cluster(model):
  return CLUSTERING.cluster_weights(
      model, number_of_clusters=4,
      cluster_centroids_init=CLUSTERING.CentroidInitialization.LINEAR)


def _cluster_by_channel(model):
  return CLUSTERING.cluster_weights(
      model, number_of_clusters=3, cluster_per_channel=True,
      cluster_centroids_init=CLUSTERING.CentroidInitialization.LINEAR)


def _round(model):
  """Clusters that keep the zeros."""
  for layer in _sparse(model).layers:
    for weight in layer.weights:
      if "kernel" in weight.name:
        weight.assign(0.5 * np.sign(weight))
  return model


def _apply(model, scheme):
  return tfmot.quantization.keras.quantize_apply(
      tfmot.quantization.keras.quantize_annotate_model(model), scheme)


def _cqat(model):
  return _apply(CLUSTERING.strip_clustering(model),
                COMBINE.Default8BitClusterPreserveQuantizeScheme(False))


KINDS = {
    "plain": tiny.copy_of,
    "pruned": tiny.prune,
    "clustered": _cluster,
    "qat": tiny.quantize,
    "pqat": lambda model: _apply(
        _sparse(model), COMBINE.Default8BitPrunePreserveQuantizeScheme()),
    "cqat": lambda model: _cqat(_cluster(model)),
    "cqat_by_channel": lambda model: _cqat(_cluster_by_channel(model)),
    "pcqat": lambda model: _apply(
        _round(model), COMBINE.Default8BitClusterPreserveQuantizeScheme(True)),
    "pruned_stripped": lambda model: tfmot.sparsity.keras.strip_pruning(
        tiny.prune(model)),
    "clustered_stripped": lambda model: CLUSTERING.strip_clustering(
        _cluster(model)),
}
QUICK = ("plain.h5", "pruned.h5", "clustered.h5", "pqat.h5", "pruned.keras",
         "clustered_stripped.keras", "plain_folder", "pqat_folder")
ENDINGS = {".h5": KINDS, "": KINDS, ".keras": [
    kind for kind in KINDS if "qat" not in kind]}

CASES = [(f"{kind}{ending or '_folder'}", kind, ending)
         for ending, kinds in ENDINGS.items() for kind in kinds
         if (kind, ending) != ("clustered_stripped", ".h5")]


# One case of each file type shows what a graph needs of a loaded optimizer.
IN_A_GRAPH = ("plain.h5", "pqat_folder")


def _train(model, callbacks=(), graph=False):
  model.run_eagerly = not graph  # A graph is traced longer than a few steps.
  if tiny.pruning_steps(model):
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep(), *callbacks]
  return model.fit(PICTURES, LABELS, batch_size=4, verbose=0, shuffle=False,
                   callbacks=list(callbacks))


def _made(kind, epochs=2, graph=False):
  keras.utils.set_random_seed(0)
  model = KINDS[kind](tiny.conv_net(head="softmax", tail="gap"))
  model.compile(keras.optimizers.Adam(0.01),
                "sparse_categorical_crossentropy", metrics=["accuracy"])
  for _ in range(epochs):
    _train(model, graph=graph)
  return model


def _small(steps=0):
  """A small model, quick to save, for tests where its kind does not matter."""
  keras.utils.set_random_seed(0)
  model = keras.Sequential([
      keras.Input((tiny.SIZE, tiny.SIZE, 2)), keras.layers.Flatten(),
      keras.layers.Dense(tiny.CLASSES, "softmax")])
  model.compile(keras.optimizers.Adam(0.01),
                "sparse_categorical_crossentropy", run_eagerly=True)
  for _ in range(steps):
    model.train_on_batch(PICTURES, LABELS)
  return model


def _state(model):
  """All variables, by layer and name; the optimizer's variables in order."""
  state = {(layer.name, name): weight.numpy() for layer in model.layers
           for name, weight in by_name(layer.weights).items()}
  return {**state, **{("optimizer", number): slot.numpy() for number, slot in
                      enumerate(model.optimizer.variables)}}


class _SavingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)

  def assert_same(self, model, other):
    np.testing.assert_array_equal(model(PICTURES), other(PICTURES))
    state, other_state = _state(model), _state(other)
    self.assertEqual(set(state), set(other_state))
    for name, value in state.items():
      np.testing.assert_array_equal(value, other_state[name], str(name))


class KindsTest(_SavingTest):

  @parameterized.named_parameters(
      case for case in CASES if case[0] in QUICK)
  def test_there_and_back(self, kind, ending):
    self.check_there_and_back(
        kind, ending, graph=f"{kind}{ending or '_folder'}" in IN_A_GRAPH)

  @parameterized.named_parameters(
      case for case in CASES if case[0] not in QUICK)
  @pytest.mark.slow("saving")
  def test_there_and_back_of_the_rest(self, kind, ending):
    self.check_there_and_back(kind, ending, graph=True)

  def check_there_and_back(self, kind, ending, graph):
    """Equal to the last bit, and still after both are trained on."""
    model = _made(kind, graph=graph)
    before = _state(model)
    path = save_model(model, self.folder / f"net{ending}")
    self.assertEqual(os.listdir(self.folder), [path.name])
    after = _state(model)
    self.assertEqual(set(before), set(after))
    for name, value in before.items():
      np.testing.assert_array_equal(value, after[name], str(name))
    loaded = load_model(path)
    self.assertIs(type(loaded), type(model))
    self.assert_same(model, loaded)
    self.assertEqual(preserved_kind(loaded), preserved_kind(model))
    kernels = _kernels(model)
    zeros = {name: kernel == 0 for name, kernel in kernels.items()}
    for trained in (model, loaded):
      _train(trained, graph=graph)
    self.assert_same(model, loaded)
    self.assertFalse(np.array_equal(_kernels(model)["conv"], kernels["conv"]))
    if kind in ("pqat", "pcqat"):
      for name, kernel in _kernels(loaded).items():
        # Half of each kernel was zeroed; one whose zeros were lost has none.
        self.assertGreater(zeros[name].mean(), 0.3)
        np.testing.assert_array_equal(kernel[zeros[name]], 0)
    if kind == "cqat":
      for kernel in _kernels(loaded).values():
        self.assertLessEqual(len(np.unique(kernel)), 4 * kernel.shape[-1])

  @parameterized.parameters((".h5", ".h5"), ("", ".h5"))
  @pytest.mark.slow("saving")
  def test_what_was_loaded_can_be_saved_again(self, ending, second_ending):
    self.check_saved_again(ending, second_ending)

  @pytest.mark.slow("saving")
  def test_what_was_loaded_can_be_saved_again_to_a_folder(self):
    self.check_saved_again("", "")

  def check_saved_again(self, ending, second_ending):
    model = _made("pqat")
    first = save_model(model, self.folder / f"first{ending}")
    second = save_model(
        load_model(first), self.folder / f"second{second_ending}")
    self.assert_same(model, load_model(second))

  @parameterized.parameters("qat", "pcqat")
  def test_keras_files_that_could_not_be_loaded(self, kind):
    self.check_that_keras_files_could_not_be_loaded(kind)

  @parameterized.parameters("pqat", "cqat")
  @pytest.mark.slow("saving")
  def test_keras_files_of_the_rest_that_could_not_be_loaded(self, kind):
    self.check_that_keras_files_could_not_be_loaded(kind)

  def check_that_keras_files_could_not_be_loaded(self, kind):
    path = self.folder / "net.keras"
    model = _made(kind, epochs=0)
    with self.assertRaisesRegex(ValueError, r"net.keras.*ends in .h5, or to a"):
      save_model(model, path)
    self.assertEmpty(os.listdir(self.folder))
    model.save(path)  # As Keras does without a word.
    with tfmot.quantization.keras.quantize_scope(), self.assertRaisesRegex(
        ValueError, "expected 5 variables, but received 3"):
      keras.models.load_model(path)  # When this passes, allow .keras.
    with self.assertRaisesRegex(ValueError, r"net.keras.*cannot be loaded"):
      load_model(path)

  def test_keras_alone_forgets_zeros(self):
    """Why the kind is noted: without it preserving_quantizers.py can go."""
    self.check_that_keras_forgets("pqat", ".h5")

  @parameterized.parameters("pqat", "cqat")
  @pytest.mark.slow("saving")
  def test_keras_alone_forgets_zeros_and_clusters_in_a_folder(self, kind):
    self.check_that_keras_forgets(kind, "")

  def check_that_keras_forgets(self, kind, ending):
    model = _made(kind)
    path = self.folder / f"net{ending}"
    model.save(path, save_format="h5" if ending else "tf")
    with tfmot.quantization.keras.quantize_scope():
      loaded = keras.models.load_model(path)
    self.assertIsNone(preserved_kind(loaded))
    zeros = _kernels(model)["conv"] == 0
    _train(loaded)
    kernel = _kernels(loaded)["conv"]
    if ending:
      # Half of the kernel was zeroed, and by far the most of it wakes; an .h5
      # file's masks are those of new weights, so that some zeros stay.
      self.assertGreater(zeros.mean(), 0.3)
      self.assertGreater((kernel[zeros] != 0).mean(), 0.3)
    else:
      self.assertLen(np.unique(kernel), kernel.size)

  @pytest.mark.slow("saving")
  def test_clusters_that_training_emptied(self):
    for kind in ("cqat",):
      model = _made(kind)
      for layer in model.layers:
        weights = by_name(layer.weights)
        if "cluster_centroids_tf" in weights:
          weights["kernel"].assign(0 * weights["kernel"] + 0.5)
      for ending in (".h5", ""):
        path = save_model(model, self.folder / f"{kind}{ending}")
        loaded = load_model(path)
        self.assert_same(model, loaded)
        _train(loaded)

  def test_a_stripped_model_whose_optimizer_h5_cannot_hold(self):
    model = _made("clustered_stripped")
    path = self.folder / "net.h5"
    with self.assertRaisesRegex(ValueError, "net.h5.*share a name.*.keras"):
      save_model(model, path)
    model = KINDS["clustered_stripped"](tiny.conv_net())  # Never compiled.
    save_model(model, path)
    np.testing.assert_array_equal(load_model(path)(PICTURES), model(PICTURES))

  def test_not_compiled_and_sequential(self):
    model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    for ending in ENDINGS:
      loaded = load_model(save_model(model, self.folder / f"net{ending}"))
      self.assertTrue(tiny.weights_equal(
          loaded.get_weights(), model.get_weights()))

  def test_custom_objects(self):
    class Twice(keras.layers.Layer):
      def call(self, x):
        return 2 * x
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Twice()(inputs))
    path = save_model(model, self.folder / "net.h5")
    with self.assertRaisesRegex((ValueError, TypeError), "Twice"):
      load_model(path)
    loaded = load_model(path, {"Twice": Twice})
    self.assertEqual(float(loaded(np.ones((1, 3), np.float32))[0, 0]), 2)


class FilesTest(_SavingTest):

  def test_a_full_disk_is_called_that(self):
    # A limit on a file's size stands for it; HDF5 has a RuntimeError for both.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
      with self.assertRaises(OSError):
        save_model(_small(), self.folder / "net.h5")
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    self.assertEmpty(os.listdir(self.folder))

  @parameterized.parameters(".h5", ".keras", "")
  def test_whole_or_not_at_all(self, ending):
    path = self.folder / f"net{ending}"
    model = _small()
    save_model(model, path)
    other = _small(steps=2)
    for name in ("tf_keras.Model.save", "os.replace"):
      with mock.patch(name, side_effect=OSError("disk full")), (
          self.assertRaisesRegex(OSError, "disk full")):
        save_model(other, path)
      self.assertEqual(os.listdir(self.folder), [path.name])
      np.testing.assert_array_equal(
          load_model(path)(PICTURES), model(PICTURES))
    save_model(other, path)
    self.assertEqual(os.listdir(self.folder), [path.name])
    self.assert_same(load_model(path), other)

  def test_a_folder_that_cannot_be_replaced_comes_back(self):
    path = self.folder / "net"
    model = _small()
    save_model(model, path)
    replace, calls = os.replace, []
    def second_fails(*names):
      calls.append(names)
      if len(calls) == 2:
        raise OSError("busy")
      replace(*names)
    other = _small(steps=2)
    with mock.patch("os.replace", second_fails), (
        self.assertRaisesRegex(OSError, "busy")):
      save_model(other, path)
    np.testing.assert_array_equal(load_model(path)(PICTURES), model(PICTURES))

  def test_wrong_names_and_models(self):
    model = _small()
    for name, words in (("net.tflite", "must end in .h5 or .keras"),
                        ("net.hdf5", "must end in .h5 or .keras")):
      with self.assertRaisesRegex(ValueError, words):
        save_model(model, self.folder / name)
    with self.assertRaisesRegex(FileNotFoundError, "folder does not exist"):
      save_model(model, self.folder / "none" / "net.h5")
    (self.folder / "taken").write_text("")
    with self.assertRaisesRegex(ValueError, "'.*taken' is a file"):
      save_model(model, self.folder / "taken")
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      save_model("model", self.folder / "net.h5")
    with self.assertRaisesRegex(FileNotFoundError, "nothing.h5' does not exis"):
      load_model(self.folder / "nothing.h5")

  def test_rights_are_those_of_any_file(self):
    path = save_model(_small(), self.folder / "net.h5")
    save_model(_small(), self.folder / "net")
    (self.folder / "other").write_text("")
    (self.folder / "folder").mkdir()
    for saved, like in (("net.h5", "other"), ("net", "folder")):
      self.assertEqual((self.folder / saved).stat().st_mode,
                       (self.folder / like).stat().st_mode)
    with h5py.File(path) as file:
      self.assertNotIn("keras_attr_preserve_kind", file.attrs)


class _Save(keras.callbacks.Callback):
  """Saves after each epoch by `save_model`."""

  def __init__(self, path):
    super().__init__()
    self.path = path
    self.output = None

  def on_epoch_end(self, epoch, logs=None):
    save_model(self.model, self.path)
    self.output = self.model(PICTURES).numpy()


class FitTest(_SavingTest):

  @parameterized.parameters(("pqat", ".h5", True), ("plain", "", False))
  @pytest.mark.slow("saving")
  def test_inside_a_fit(self, kind, ending, graph):
    self.check_inside_a_fit(kind, ending, graph)

  @parameterized.parameters(("pruned", ".h5"), ("pruned", ""), ("pqat", ""))
  @pytest.mark.slow("saving")
  def test_of_the_rest_inside_a_fit(self, kind, ending):
    self.check_inside_a_fit(kind, ending, graph=True)

  def check_inside_a_fit(self, kind, ending, graph):
    teacher = tiny.conv_net(head="softmax", tail="gap")
    model = _made(kind, epochs=0)
    save = _Save(self.folder / f"ours{ending}")
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(self.folder / f"keras{ending}"))
    history = _train(model, [
        PreserveAttribution(teacher, WCAM("act")), save, checkpoint],
                     graph=graph)
    self.assertIn("attr_loss", history.history)
    self.assertEmpty({"train_step", "test_step"} & set(vars(model)))
    for path in (save.path, checkpoint.filepath):
      np.testing.assert_array_equal(load_model(path)(PICTURES), save.output)
    history = _train(load_model(save.path), [
        PreserveAttribution(teacher, WCAM("act"))], graph=graph)
    self.assertIn("attr_loss", history.history)

  @pytest.mark.slow("saving")
  def test_in_a_process_of_its_own(self):
    model = _made("pqat")
    paths = [str(save_model(model, self.folder / f"net{ending}"))
             for ending in (".h5", "")]
    np.save(self.folder / "in.npy", PICTURES)
    np.save(self.folder / "out.npy", model.predict(PICTURES, verbose=0))
    code = ("import sys, numpy as np\n"
            "from keras_attr_preserve.models.saving import load_model\n"
            "pictures, want = (np.load(one) for one in sys.argv[1:3])\n"
            "for path in sys.argv[3:]:\n"
            "  got = load_model(path).predict(pictures, verbose=0)\n"
            "  assert np.array_equal(got, want), path\n")
    subprocess.run(
        [sys.executable, "-c", code, self.folder / "in.npy",
         self.folder / "out.npy", *paths], check=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(
            [str(ROOT), *sys.path])})


if __name__ == "__main__":
  absltest.main()
