"""Loads the model and the images that a command line names."""

import importlib
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.saving import load_model

__all__ = ["define_loading_flags", "load_images", "load_pictures",
           "load_teacher", "picture_paths"]

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


# The flags defined here are those of the command, and --help shows them.
flags.disclaim_key_flags()


def define_loading_flags(values: flags.FlagValues) -> None:
  """Defines the flags for loading a model's file."""
  flags.DEFINE_list(
      "custom_objects", [], "Layers and functions of your own that the model "
      "has, as module:NAME by commas; a module alone is imported, so that it "
      "can register its own. Modules are found in this folder, too.",
      flag_values=values)
  flags.DEFINE_bool(
      "unsafe", False, "Run the Python code that a model's file holds, and "
      "import the modules that it names: only for files of people you trust.",
      flag_values=values)


def load_teacher(
    path: str, values: flags.FlagValues, flag: str = "--teacher"
) -> keras.Model:
  """Loads a model.

  Args:
    path: an .h5 or .keras file, or a SavedModel folder, saved by `tf_keras`.
    values: the flags of `define_loading_flags`.
    flag: the flag that names the model, for errors.

  Returns:
    The model, not compiled.

  Raises:
    OSError: the file is missing or cannot be read.
    ImportError: a module of --custom_objects is not found.
    ValueError: the file holds no `tf_keras` model, or code without --unsafe.
  """
  if not Path(path).exists():
    raise FileNotFoundError(f"{flag}: no file or folder {path!r}.")
  objects = _named_objects(values["custom_objects"].value)
  try:
    return load_model(path, objects, safe_mode=not values["unsafe"].value,
                      compile=False)
  except ValueError as error:
    raise ValueError(f"{flag} must hold a tf_keras model; {error}") from error


def _named_objects(names: Sequence[str]) -> dict[str, Any]:
  """Imports the objects of --custom_objects, from this folder, too."""
  objects, before = {}, [*sys.path]
  sys.path.append(os.getcwd())
  try:
    for entry in names:
      module, _, name = entry.partition(":")
      imported = importlib.import_module(module)
      if name:
        objects[name] = getattr(imported, name, None)
        if objects[name] is None:
          raise ValueError(
              f"--custom_objects must be module:NAME by commas; module "
              f"{module!r} has no {name!r}.")
  finally:
    sys.path[:] = before
  return objects


def load_images(path: str, key: str, flag: str = "--images") -> np.ndarray:
  """Loads images from NumPy's files.

  Args:
    path: an .npy or .npz file.
    key: the array's name in an .npz.
    flag: the flag that names the file, for errors.

  Returns:
    The array.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is not NumPy's, or has no such key.
  """
  try:
    loaded = np.load(path, allow_pickle=False)
  except (EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
        f"{flag} must be a whole .npy or .npz file; {path!r}: "
        f"{error}") from error
  if isinstance(loaded, np.ndarray):
    return loaded
  with loaded:
    if key not in loaded:
      raise ValueError(
          f"{flag}_key must be one of {loaded.files} of {path!r}; got "
          f"{key!r}.")
    return loaded[key]


def picture_paths(folder: str) -> list[Path]:
  """Returns the paths of a folder's images, in the order of `load_pictures`."""
  return sorted(path for path in Path(folder).iterdir()
                if path.suffix.lower() in _PICTURES)


def load_pictures(
    folder: str, shape: Sequence[int | None], value_range: Sequence[str] | None
) -> np.ndarray:
  """Loads a folder's images, in the order of their names.

  Args:
    folder: a folder of PNG, JPEG or BMP files; other files are ignored.
    shape: `(height, width, channels)` of the results; images are squashed,
      bilinear and antialiased. Channels are 3, or 1 for grey.
    value_range: the values for black and white, two numbers.

  Returns:
    float32 `[images, height, width, channels]`.

  Raises:
    OSError: the folder cannot be read.
    ValueError: the folder holds no images, or a damaged image; or no range is
      given.
  """
  paths = picture_paths(folder)
  if not paths:
    raise ValueError(
        f"--images: {folder!r} holds no pictures {', '.join(_PICTURES)}.")
  try:
    low, high = (float(value) for value in value_range or ())
  except ValueError as error:
    raise ValueError(
        "--images_range must say what the model takes for black and white, as "
        f"0,1 or -1,1 or 0,255; got {value_range}.") from error
  if None in shape or len(shape) != 3 or shape[-1] not in (1, 3):
    raise ValueError(
        "--images: only a model of pictures of a fixed size in colour or grey "
        f"can be given a folder; it takes {list(shape)}.")
  return np.stack([_picture(path, shape) for path in paths]) * np.float32(
      (high - low) / 255) + np.float32(low)


def _picture(path: Path, shape: Sequence[int]) -> np.ndarray:
  """Reads an image, 0..255."""
  try:
    pixels = tf.io.decode_image(
        path.read_bytes(), channels=3, expand_animations=False)
  except tf.errors.InvalidArgumentError as error:
    raise ValueError(
        f"--images: {str(path)!r} is no whole picture: "
        f"{error.message}") from error
  pixels = tf.image.resize(pixels, shape[:2], antialias=True)
  return (pixels if shape[2] == 3 else
          tf.image.rgb_to_grayscale(pixels)).numpy()
