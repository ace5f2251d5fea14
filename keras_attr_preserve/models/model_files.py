"""Checks a model's file before Keras loads it.

Loading a model runs the Python code of its lambdas and imports the modules that
the file names. tf_keras refuses only the code, and only in `.keras` files.
"""

import builtins
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from keras_attr_preserve.compat import keras

__all__ = ["check_model_file", "shortened"]

# A configuration may name classes and functions of these packages.
_PACKAGES = ("keras", "tf_keras", "tensorflow_model_optimization",
             "keras_attr_preserve")
# Modules with functions for layers; other functions may read or write files.
_FUNCTIONS = frozenset({
    "activations", "applications", "constraints", "initializers", "losses",
    "metrics", "nn", "ops", "regularizers"})
_CURE = ("if you trust who made the file, pass safe_mode=False (the commands: "
         "--unsafe)")
_KERAS3_CURE = ("replace it by layers of Keras's own, or load the model by "
                "Keras yourself and give that")
_METADATA = "keras_metadata.pb"
_OLD_MARK = b"_tf_keras_"


def check_model_file(
    path: str | os.PathLike,
    custom_objects: Mapping[str, Any] | None = None,
    *,
    safe_mode: bool = True,
    keras3: bool = False,
) -> None:
  """Raises where a file holds no suitable model, or code that would run.

  Args:
    path: an existing `.h5` or `.keras` file or SavedModel folder.
    custom_objects: the caller's classes and functions, by name.
    safe_mode: whether to refuse code in the file, and modules other than
      Keras's and tfmot's.
    keras3: whether Keras 3 shall load the file instead of tf_keras. Keras 3
      checks the modules itself.

  Raises:
    ValueError: the file holds code, was saved by the other Keras, holds weights
      without a model, or holds a function without its layers.
  """
  path = Path(path)
  if path.is_dir():
    _check_folder(path, custom_objects, safe_mode)
    return
  configs = None
  try:
    # A file may be of both kinds, and Keras might read either.
    if zipfile.is_zipfile(path):
      configs = _zipped(path, keras3)
    if h5py.is_hdf5(path):
      configs = [*(configs or ()), *_hdf5(path, keras3)]
  except (AttributeError, KeyError, OSError, TypeError, UnicodeError,
          RecursionError, zipfile.BadZipFile, json.JSONDecodeError) as error:
    raise ValueError(
        f"path {str(path)!r} holds no whole Keras model: "
        f"{shortened(error)}") from error
  if configs is None:
    raise ValueError(
        f"path {str(path)!r} is no .h5 or .keras file of a Keras model, and no "
        "folder of one.")
  for config in configs if safe_mode else ():
    _check_code(path, config, _KERAS3_CURE if keras3 else _CURE)
    if not keras3:
      _check_modules(path, config, custom_objects)


def shortened(error: object, keep: int = 200) -> str:
  """Shortens a long text, such as an error, to its two ends on one line."""
  text = " ".join(str(error).split())
  if len(text) <= 2 * keep:
    return text
  return f"{text[:keep]} ... {text[-keep:]}"


def _zipped(path: Path, keras3: bool) -> list[Any]:
  with zipfile.ZipFile(path) as file:
    version = json.loads(file.read("metadata.json"))["keras_version"]
    _check_version(path, version, keras3)
    return [json.loads(file.read("config.json"))]


def _hdf5(path: Path, keras3: bool) -> list[Any]:
  with h5py.File(path) as file:
    config, training, version = (
        file.attrs.get(name)
        for name in ("model_config", "training_config", "keras_version"))
    if config is None:
      raise ValueError(
          f"path {str(path)!r} holds weights without their model: build the "
          "model, call its load_weights, and save it by model.save.")
    _check_version(path, "2" if version is None else _text(version), keras3)
    return [json.loads(_text(value)) for value in (config, training)
            if value is not None]


def _check_version(path: Path, version: str, keras3: bool) -> None:
  """Raises where a different Keras saved the file."""
  if keras3 and version.split(".")[0] in ("1", "2"):
    raise ValueError(
        f"model {str(path)!r} was saved by tf_keras {version}: load it with "
        "tf_keras.models.load_model, and use it as it is.")
  if not keras3 and version.split(".")[0] not in ("1", "2"):
    raise ValueError(
        f"path {str(path)!r} was saved by Keras {version}, and this library "
        f"takes models of tf_keras: make one by "
        f"kap.from_keras3({str(path)!r}), and save it by kap.save_model.")


def _check_folder(path: Path, custom_objects: Any, safe_mode: bool) -> None:
  if not (path / "saved_model.pb").exists():
    raise ValueError(
        f"path {str(path)!r} is a folder without a saved_model.pb: it holds no "
        "SavedModel.")
  if (path / _METADATA).exists():
    if safe_mode:
      for config in _saved_configs(path):
        _check_code(path, config, _CURE)
        # The folder holds the layers' graphs, so Keras imports no layer.
        _check_modules(path, config.get("training_config"), custom_objects)
  elif _OLD_MARK not in (path / "saved_model.pb").read_bytes():
    raise ValueError(
        f"path {str(path)!r} holds a function without its layers, as "
        "model.export and tf.saved_model.save write it: save the model itself, "
        "by model.save (in Keras 3 as .keras, for kap.from_keras3).")
  elif safe_mode:
    raise ValueError(
        f"path {str(path)!r} was saved by a Keras before 2.5, in whose folders "
        f"code is not told from data; {_CURE}.")


def _saved_configs(path: Path) -> list[dict[str, Any]]:
  """Reads Keras's metadata of each layer of a SavedModel."""
  from google.protobuf import message
  from tf_keras.protobuf import saved_metadata_pb2

  metadata, configs = saved_metadata_pb2.SavedMetadata(), []
  try:
    metadata.ParseFromString((path / _METADATA).read_bytes())
    for node in metadata.nodes:
      config = json.loads(node.metadata or "{}")
      if not isinstance(config, dict):
        raise ValueError(f"a node's metadata are no mapping: {config!r}")
      configs.append(config)
  except (message.DecodeError, ValueError, RecursionError) as error:
    raise ValueError(
        f"path {str(path / _METADATA)!r} is damaged: "
        f"{shortened(error)}") from error
  return configs


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value


def _check_code(path: Path, config: Any, cure: str) -> None:
  """Raises where a configuration holds marshalled Python code."""
  for entry, name in _parts(config):
    # Keras marks a lambda by a class name; in Lambda layers and wrappers of
    # cells by a key that ends in "_type".
    if entry.get("class_name") == "__lambda__" or any(
        value == "lambda" and str(key).endswith("_type")
        for key, value in entry.items()):
      raise ValueError(
          f"path {str(path)!r}: layer {name!r} holds Python code (a lambda), "
          f"which loading the model would run; {cure}.")


def _check_modules(path: Path, config: Any, custom_objects: Any) -> None:
  for entry, name in _parts(config):
    _check_module(path, entry, name, custom_objects)


def _check_module(
    path: Path, entry: Mapping[str, Any], name: str, custom_objects: Any
) -> None:
  """Raises where a class or function belongs to a module outside Keras."""
  module, what = entry.get("module"), entry.get("class_name")
  if module is None or what is None:
    return
  function = what == "function"
  if function:
    what = entry.get("config")
  elif what == "__typespec__":
    what = entry.get("spec_name")
  # Keras looks this name up in its registry before it imports anything.
  asked = str(what if function else entry.get("registered_name", what))
  if keras.utils.get_registered_object(
      asked, custom_objects=dict(custom_objects or {})) is not None:
    return
  package, *rooms = str(module).split(".")
  if package == "builtins":
    fine = function and not hasattr(builtins, str(what))
  else:
    fine = package in _PACKAGES and (
        not function or package not in ("keras", "tf_keras")
        or not _FUNCTIONS.isdisjoint(rooms))
  if fine:
    return
  raise ValueError(
      f"path {str(path)!r}: layer {name!r} names {what!r} of the module "
      f"{module!r}, which loading the model would import; give it as "
      f"custom_objects={{{str(what)!r}: ...}} (the commands: "
      f"--custom_objects=MODULE:NAME), or {_CURE}.")


def _parts(config: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
  """Yields each mapping in a configuration, and the name of its layer."""
  todo = [(config, "")]
  while todo:
    entry, name = todo.pop()
    if isinstance(entry, Mapping):
      name = entry["name"] if isinstance(entry.get("name"), str) else name
      inner = entry.get("config")
      if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
        name = inner["name"]
      yield entry, name
      todo += [(value, name) for value in entry.values()]
    elif isinstance(entry, list):
      todo += [(value, name) for value in entry]
