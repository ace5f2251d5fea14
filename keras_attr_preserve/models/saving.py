"""Saves and loads models of every kind that tfmot makes.

A loaded model gives the same outputs to the last bit. It also keeps the state
of training: the optimizer, masks and steps of pruning, centroids, ranges.
Pruned weights are zero in the file, see held_weights.py. This module works
around three faults of Keras and tfmot 0.8.1:

* tfmot writes pruning- and cluster-preserving quantizers as plain quantizers.
  Keras then loads a model that loses its zeros or clusters in training. This
  module notes the kind in the file and makes the quantizers again.
* tfmot notes no pattern such as two of four. It also makes the masks of sparse
  clusters from weights that the file replaces later.
* tf_keras 2.21 loads a SavedModel's optimizer without its state.
"""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.held_weights import (
  hold_aloud,
  restore_sparse_clusters,
)
from keras_attr_preserve.models.keras3_layers import Keras3Activation
from keras_attr_preserve.models.model_files import check_model_file, shortened
from keras_attr_preserve.models.preserving_quantizers import (
  PruningWrapper,
  Wrapper,
  by_name,
  last_name,
  patterns,
  preserved_kind,
)
from keras_attr_preserve.utils.atomic_files import take_name
from keras_attr_preserve.utils.notices import notice

__all__ = ["load_model", "save_model"]

_MARK = "keras_attr_preserve_kind"
_PATTERNS = "keras_attr_preserve_patterns"
_SPARSE = 0.1  # Kernels that are not pruned have hardly any zeros.
_EXTRA = "assets.extra"  # The notes' folder in a SavedModel.


def save_model(model: keras.Model, path: str | os.PathLike) -> Path:
  """Saves a model and its compiled state for `load_model`.

  The path never holds half a model: a failed or interrupted save leaves the
  previous file. The function may be called while `fit` runs.

  Args:
    model: a built `tf_keras` model: plain, stripped, or wrapped by pruning,
      clustering, or quantization-aware training of any scheme. It stays
      unchanged, except for kernels that lost zeros or clusters, for example to
      averages or restored weights. Those are restored, with a warning.
    path: ends in `.h5` (every kind) or `.keras` (no quantization-aware training
      of the input, see Raises). A path without an ending is the folder of a
      SavedModel, which also runs without Keras. The parent folder exists.

  Returns:
    The path.

  Raises:
    TypeError: the model is no `tf_keras` model.
    ValueError: the path has another ending. Or a `.keras` file could not be
      loaded again: tfmot's QuantizeLayer does not note that it is built, so
      Keras builds it twice. Or an `.h5` file cannot hold the optimizer, whose
      variables share names.
    OSError: the disk is full, or the folder cannot be written to.
  """
  if not isinstance(model, keras.Model):
    raise TypeError(f"model must be a tf_keras.Model; got {type(model)}.")
  path = Path(path)
  kind = preserved_kind(model)
  _check_path(path)
  if path.suffix == ".keras" and (kind or _has_quantize_layer(model)):
    raise ValueError(
        f"path {str(path)!r}: a .keras file of a model of "
        "quantization-aware training cannot be loaded again; save it to a "
        "name that ends in .h5, or to a folder.")
  if path.suffix == ".h5":
    _check_names(model, path)
  hold_aloud(model, "save_model")
  room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  try:
    temporary = room / f"new{path.suffix}"
    if path.suffix == ".h5":
      temporary.write_bytes(_hdf5(model, _notes(model, kind)))
    else:
      model.save(temporary, save_format=path.suffix[1:] or "tf")
      _note(temporary, _notes(model, kind))
    take_name(temporary, path, room / "old")
  finally:
    shutil.rmtree(room)
  return path


def _hdf5(model: keras.Model, notes: dict[str, str]) -> bytes:
  """Makes the content of an .h5 file, with the notes, in memory.

  On a full disk HDF5 only raises a RuntimeError, "Can't destroy cache".
  """
  content = io.BytesIO()
  with h5py.File(content, "w") as file:
    model.save(file)
    file.attrs.update(notes)
  return content.getvalue()


def load_model(
    path: str | os.PathLike,
    custom_objects: dict[str, Any] | None = None,
    *,
    safe_mode: bool = True,
    compile: bool = True,
) -> keras.Model:
  """Loads a model that `save_model` or Keras saved, within tfmot's scopes.

  A compiled model is loaded compiled, with its optimizer's state. A file that
  Keras itself saved (a `ModelCheckpoint`) does not note pruning- or
  cluster-preserving training. Its outputs are right, but the model is loaded as
  plain quantization-aware training, with a warning where its kernels have
  zeros. Save such models by `save_model`.
  If a pruned model's file has lost zeros, its masks restore them, with a
  warning.

  Args:
    path: an `.h5` or `.keras` file, or the folder of a SavedModel.
    custom_objects: your own classes and functions, by name.
    safe_mode: whether to refuse Python code (a lambda) in a file of any kind,
      as Keras does in `.keras` files. Also refuses classes and functions of
      modules that are neither Keras's nor tfmot's nor given. False runs the
      file's code: only for files of people you trust.
    compile: whether to compile the model as it was when saved.

  Returns:
    The model.

  Raises:
    FileNotFoundError: the path does not exist.
    ValueError: the file cannot be loaded; a `.keras` file of quantization-aware
      training never can. Or the file holds code, and `safe_mode` is True; or
      Keras 3 saved it, or it holds no model.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"path {str(path)!r} does not exist.")
  check_model_file(path, custom_objects, safe_mode=safe_mode)
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as file:
      config = json.loads(file.read("config.json"))
    if '"QuantizeLayer"' in json.dumps(config):
      raise ValueError(
          f"path {str(path)!r}: a .keras file of a model of quantization-aware "
          "training cannot be loaded, because tfmot's QuantizeLayer is built "
          "twice; save the model again by kap.save_model, to a name that ends "
          "in .h5 or to a folder.")
  notes = _noted(path)
  try:
    with _scopes(custom_objects), keras.utils.custom_object_scope({
        "PruneLowMagnitude": PruningWrapper(
            json.loads(notes.get(_PATTERNS, "{}")))}):
      model = _loaded(path, notes.get(_MARK), safe_mode, compile)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    cure = "" if not re.search("Unknown|custom", str(error)) else (
        "; give classes and functions of your own as custom_objects (the "
        "commands: --custom_objects=MODULE:NAME)")
    # Keras's own errors hold the whole configuration.
    raise ValueError(
        f"path {str(path)!r} cannot be loaded as a model of tf_keras: "
        f"{shortened(error).rstrip('.')}{cure}.") from error
  if isinstance(model, keras.Model):
    restore_sparse_clusters(model)
    hold_aloud(model, "load_model")
    if _MARK not in notes:
      _warn_of_zeros(path, model)
  return model


def _warn_of_zeros(path: Path, model: keras.Model) -> None:
  """Warns of a model with zeros whose file does not say to keep them."""
  zeros = {
      layer.name: float((weight.numpy() == 0).mean())
      for layer in model.submodules if hasattr(layer, "quantize_config")
      for name, weight in by_name(layer.weights).items() if name == "kernel"}
  sparse = [f"{name} {share:.3f}" for name, share in zeros.items()
            if share >= _SPARSE]
  if sparse:
    notice(
        f"load_model: kernels of the quantize-aware model in {str(path)!r} "
        f"have zeros (share: {', '.join(sparse)}), and the file does not say "
        "that training is to keep them, as those that Keras saves. Trained on, "
        "it loses them; save such models by kap.save_model.")


def _loaded(
    path: Path, kind: str | None, safe_mode: bool, compiled: bool
) -> keras.Model:
  if path.is_dir():
    return _load_folder(path, kind, compiled)
  if kind is None:
    return keras.models.load_model(
        path, compile=compiled, safe_mode=safe_mode)
  with keras.utils.custom_object_scope(
      {"QuantizeWrapperV2": Wrapper(kind, _h5_weights(path))}):
    return keras.models.load_model(path, compile=compiled)


@contextlib.contextmanager
def _scopes(custom_objects: dict[str, Any] | None) -> Iterator[None]:
  with (tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
        keras.utils.custom_object_scope(
            {"Keras3Activation": Keras3Activation, **(custom_objects or {})})):
    yield


def _load_folder(
    path: Path, kind: str | None, compiled: bool) -> keras.Model:
  model = keras.models.load_model(path, compile=compiled)
  if kind is not None:
    model = _rebuilt(model, kind, compiled)
  if not compiled:
    return model
  optimizer = getattr(model, "optimizer", None)
  if optimizer is not None and hasattr(optimizer, "build"):
    optimizer.build(model.trainable_variables)
    status = tf.train.Checkpoint(optimizer=optimizer).read(
        str(path / "variables" / "variables"))
    if optimizer.iterations.numpy():  # No state exists before the first step.
      status.assert_existing_objects_matched()
  return model


def _rebuilt(
    model: keras.Model, kind: str, compiled: bool) -> keras.Model:
  """Builds the model again with the quantizers of its kind."""
  layers = {layer.name: by_name(layer.weights) for layer in model.layers}
  values = {name: {key: weight.numpy() for key, weight in weights.items()}
            for name, weights in layers.items()}
  with keras.utils.custom_object_scope(
      {"QuantizeWrapperV2": Wrapper(kind, values.__getitem__)}):
    rebuilt = type(model).from_config(_unbuilt(model.get_config()))
  for layer in rebuilt.layers:
    weights = by_name(layer.weights)
    if weights.keys() != values[layer.name].keys():
      raise ValueError(
          f"path: layer {layer.name!r} of the {kind} model cannot be built "
          f"again; it has {sorted(weights)}, the file "
          f"{sorted(values[layer.name])}.")
    for name, weight in weights.items():
      weight.assign(values[layer.name][name])
  if compiled and model.get_compile_config():
    rebuilt.compile_from_config(model.get_compile_config())
  return rebuilt


def _unbuilt(config: Any) -> Any:
  """Drops the shapes, so that Keras does not build layers before the graph."""
  if isinstance(config, dict):
    return {key: _unbuilt(value) for key, value in config.items()
            if key != "build_config"}
  if isinstance(config, list):
    return [_unbuilt(value) for value in config]
  return config


def _h5_weights(path: Path) -> Callable[[str], dict[str, np.ndarray]]:
  """Returns a function that reads a layer's weights by their names."""
  def read(layer: str) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
      group = file["model_weights"][layer]
      return {last_name(_text(name)): np.asarray(group[name])
              for name in group.attrs["weight_names"]}
  return read


def _text(name: str | bytes) -> str:
  return name.decode() if isinstance(name, bytes) else name


def _check_path(path: Path) -> None:
  if path.suffix not in ("", ".h5", ".keras"):
    raise ValueError(
        f"path must end in .h5 or .keras, or have no ending for the folder of "
        f"a SavedModel; got {str(path)!r}.")
  if not path.parent.is_dir():
    raise FileNotFoundError(
        f"path {str(path)!r}: its folder does not exist.")
  if path.exists() and path.is_dir() != (not path.suffix):
    raise ValueError(
        f"path {str(path)!r} is a {'folder' if path.is_dir() else 'file'}.")


def _check_names(model: keras.Model, path: Path) -> None:
  variables = getattr(getattr(model, "optimizer", None), "variables", None)
  names = [variable.name for variable in
           (variables() if callable(variables) else variables or ())]
  if len(set(names)) < len(names):
    raise ValueError(
        f"path {str(path)!r}: an .h5 file cannot hold the optimizer's state, "
        "because some of its variables share a name (strip_clustering leaves "
        "such weights); save to a folder or a name that ends in .keras, or "
        "save kap.clone_model(model), without the optimizer.")


def _has_quantize_layer(model: keras.Model) -> bool:
  return any(type(layer).__name__ == "QuantizeLayer"
             for layer in model.submodules)


def _notes(model: keras.Model, kind: str | None) -> dict[str, str]:
  """Collects the facts of a model that tfmot does not save, by their marks."""
  pruned = patterns(model)
  return {**({_MARK: kind} if kind is not None else {}),
          **({_PATTERNS: json.dumps(pruned)} if pruned else {})}


def _note(path: Path, notes: dict[str, str]) -> None:
  """Writes notes into a `.keras` file or a SavedModel's folder."""
  if not notes:
    return
  if path.suffix:
    with zipfile.ZipFile(path, "a") as file:
      for mark, text in notes.items():
        file.writestr(f"{mark}.txt", text)
    return
  (path / _EXTRA).mkdir(exist_ok=True)
  for mark, text in notes.items():
    (path / _EXTRA / f"{mark}.txt").write_text(text)


def _noted(path: Path) -> dict[str, str]:
  """Reads the notes of a file or folder; Keras itself saves none."""
  marks = (_MARK, _PATTERNS)
  if path.is_dir():
    note_paths = {mark: path / _EXTRA / f"{mark}.txt" for mark in marks}
    return {mark: note.read_text() for mark, note in note_paths.items()
            if note.exists()}
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as file:
      return {mark: file.read(f"{mark}.txt").decode() for mark in marks
              if f"{mark}.txt" in file.namelist()}
  if not h5py.is_hdf5(path):
    return {}
  with h5py.File(path) as file:
    return {mark: _text(file.attrs[mark]) for mark in marks
            if mark in file.attrs}
