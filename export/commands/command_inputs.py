"""Reading what a command line names: a model, and pictures."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import keras, tf

__all__ = ["load_images", "load_pictures", "load_teacher"]

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


def load_teacher(path: str, flag: str = "--teacher") -> keras.Model:
  """Loads a model.

  Args:
    path: an .h5 or .keras file, or a SavedModel folder, saved by `tf_keras`.
    flag: which named it, for errors.

  Returns:
    The model, not compiled.

  Raises:
    OSError: nothing is there, or it cannot be read.
    ValueError: it holds no `tf_keras` model.
  """
  if not Path(path).exists():
    raise FileNotFoundError(f"{flag}: no file or folder {path!r}.")
  with tfmot.quantization.keras.quantize_scope(), (
      tfmot.sparsity.keras.prune_scope()):
    try:
      model = keras.models.load_model(path, compile=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
          f"{flag} must hold a tf_keras model; {path!r}: {error}") from error
  return model


def load_images(path: str, key: str, flag: str = "--images") -> np.ndarray:
  """Loads pictures from NumPy's files.

  Args:
    path: an .npy or .npz file.
    key: the array's name in an .npz.
    flag: which named it, for errors.

  Returns:
    The array.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not NumPy's, or has no such key.
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


def load_pictures(
    folder: str, shape: Sequence[int | None], value_range: Sequence[str] | None
) -> np.ndarray:
  """Loads a folder's pictures, in the order of their names.

  Args:
    folder: with PNG, JPEG or BMP files, and perhaps others, which are left.
    shape: `(height, width, channels)` to bring them to: squashed, bilinear and
      antialiased; 3 channels or 1, grey.
    value_range: what black and white become, two numbers.

  Returns:
    float32 `[pictures, height, width, channels]`.

  Raises:
    OSError: the folder cannot be read.
    ValueError: it holds no pictures, or one that is damaged; or no range.
  """
  paths = sorted(path for path in Path(folder).iterdir()
                 if path.suffix.lower() in _PICTURES)
  if not paths:
    raise ValueError(
        f"--images: {folder!r} holds no pictures {', '.join(_PICTURES)}.")
  try:
    low, high = (float(one) for one in value_range or ())
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
  """Reads a picture, 0..255."""
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
