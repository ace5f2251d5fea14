"""Images from an .npz file, in one of three forms.

    images or jpeg_buf and jpeg_off   uint8 [n, height, width, 3], or JPEG files
    labels (or targets)               class numbers [n], or 0 and 1 [n, classes]
    label_maps or masks, class_names, class_ids (or class_label_ids), split:
                                      optional

Without class_ids, class k has the label k + 1 in label_maps. In masks, values
other than 0 mark the object of the image's one class. Value 255 is void if the
mask has other values than 0 and 255. The values of split are 0, 1, 2 or train,
validation, test. `parts.complete` fills an empty validation or test part.

jpeg_buf holds the JPEG files one after another. Image i is
jpeg_buf[jpeg_off[i]:jpeg_off[i + 1]]. The third form is CIFAR's: x_train,
y_train, x_test, y_test and optionally class_names.
"""

import itertools
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from examples.experiment.data.parts import PARTS, complete, cut, divide
from examples.experiment.data.reading import VOID, Part, Picture, Source

__all__ = ["open_npz"]

# Errors of the zip and array readers on damaged files.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError,
            MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
_VOC_CLASSES = 20


def open_npz(
    path: Path, classes: Sequence[str] | None = None, seed: int = 0
) -> Source:
  """Reads an .npz file, without decoding its images.

  Args:
    path: the file.
    classes: the classes to keep. If the labels lack one of them, the function
      uses the arrays targets20 and voc20_names, if the file has them.
    seed: chooses the validation images if the file has no validation part.

  Returns:
    The source. If every row of 0 and 1 has a single 1, the classes exclude each
    other.

  Raises:
    ValueError: the file is damaged, or an array is missing or does not fit.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
  except FileNotFoundError:
    raise
  except _DAMAGED as error:
    raise ValueError(
        f"name must be an .npz file of whole arrays; {str(path)!r} cannot be "
        f"read: {error}") from error

  def fault(text):
    return ValueError(f"name: {path.name}: {text}")

  if "x_train" in arrays:
    return _train_and_test(arrays, path.name, seed, fault)
  return _one_set(arrays, path.name, classes, seed, fault)


def _one_set(arrays, name, classes, seed, fault) -> Source:
  labels, class_names, class_ids = _classes(arrays, classes, fault)
  images = _jpegs(arrays, fault) if "jpeg_buf" in arrays else _images(
      arrays, "images", fault)
  key, maps = _label_maps(arrays, fault)
  lengths = {"images": len(images), "labels": len(labels)} | {
      key: len(arrays[key]) for key in (key, "split") if key in arrays}
  if len(set(lengths.values())) > 1:
    raise fault(f"arrays must be equally long; got {lengths}.")
  map_ids = None
  if maps is None:
    class_ids = np.zeros(len(class_names), int)
  elif class_ids is None:
    class_ids = 1 + np.arange(len(class_names))
    map_ids = tuple(class_ids)
  labels, multi_label = _rows(labels, len(class_names), "labels", fault)
  objects = [None] * len(images)
  if key == "masks":
    if multi_label:
      raise fault("masks need labels of one class each, whose object they "
                  "show; with several classes give label_maps.")
    if not ((class_ids > 0) & (class_ids < VOID)).all():
      raise fault("masks need class_ids of 1..254, and 254 classes at most; "
                  f"got {class_ids.min()}..{class_ids.max()}.")
    objects = class_ids[labels.argmax(1)].tolist()
  pictures = [
      Picture(f"picture {i} of {name}", *fields) for i, fields in enumerate(zip(
          images, [None] * len(images) if maps is None else maps, objects))]
  whole = Part(pictures, labels)
  if "split" in arrays:
    splits, cut_off = complete(
        _split(whole, arrays["split"], fault), seed, name)
  else:
    splits, cut_off = divide(whole, seed), ("validation", "test")
  return Source(splits, class_names, class_ids, multi_label, cut_off, map_ids)


def _label_maps(arrays, fault) -> tuple[str, np.ndarray | None]:
  """Returns the key and the uint8 array that marks the objects."""
  keys = [key for key in ("label_maps", "masks") if key in arrays]
  if len(keys) != 1:
    if keys:
      raise fault("it must have label_maps or masks, not both.")
    return "", None
  maps = arrays[keys[0]]
  if keys == ["masks"]:
    maps = maps[..., 0] if maps.ndim == 4 and maps.shape[3] == 1 else maps
    if maps.dtype.kind in "iub" and maps.size and (
        maps.min() >= 0 and maps.max() <= VOID):
      maps = maps.astype(np.uint8)
  if maps.ndim != 3 or maps.dtype != np.uint8:
    raise fault(f"{keys[0]} must be uint8 [n, height, width]; got "
                f"{maps.dtype} {list(maps.shape)}.")
  return keys[0], maps


def _train_and_test(arrays, name, seed, fault) -> Source:
  splits = {}
  names = arrays.get("class_names")
  count = len(names) if names is not None else None
  for split in ("train", "test"):
    images = _images(arrays, f"x_{split}", fault)
    labels = _needed(arrays, f"y_{split}", fault)
    if len(images) != len(labels):
      raise fault(f"x_{split} and y_{split} must be equally long; got "
                  f"{len(images)} and {len(labels)}.")
    if count is None:
      count = _count(labels, fault)
    labels, multi_label = _rows(labels, count, f"y_{split}", fault)
    splits[split] = Part([Picture(f"picture {i} of x_{split} of {name}", image)
                          for i, image in enumerate(images)], labels)
    if split == "train":
      multi_train = multi_label
  names = _names(names, count)
  splits, cut_off = complete(splits, seed, name)
  return Source(splits, names, np.zeros(count, int), multi_train or multi_label,
                cut_off)


def _needed(arrays: Mapping, key: str, fault: Callable) -> np.ndarray:
  if key not in arrays:
    raise fault(f"{key} is missing; it has {sorted(arrays)}.")
  return arrays[key]


def _images(arrays, key, fault) -> np.ndarray:
  images = _needed(arrays, key, fault)
  channels = images.shape[3] if images.ndim == 4 else None
  if images.dtype != np.uint8 or not (
      images.ndim == 3 or channels in (1, 3, 4)):
    raise fault(f"{key} must be uint8 [n, height, width, 3]; got "
                f"{images.dtype} {list(images.shape)}.")
  return images[..., 0] if channels == 1 else images


def _jpegs(arrays, fault) -> list[bytes]:
  content, ends = arrays["jpeg_buf"], _needed(arrays, "jpeg_off", fault)
  if (content.dtype != np.uint8 or content.ndim != 1 or ends.ndim != 1
      or ends.dtype.kind not in "iu" or len(ends) < 2 or ends[0] != 0
      or ends[-1] != len(content) or (np.diff(ends.astype(int)) <= 0).any()):
    raise fault("jpeg_off must rise from 0 to the length of jpeg_buf, which "
                f"is uint8; got {ends[:3]}..{ends[-1:]} for "
                f"{content.dtype} {list(content.shape)}.")
  data = content.tobytes()
  return [data[first:last] for first, last in itertools.pairwise(ends)]


def _classes(arrays, classes, fault):
  """Returns labels, class names, and the labels in the maps or None."""
  key = next((candidate for candidate in ("labels", "targets")
              if candidate in arrays), "labels")
  labels = _needed(arrays, key, fault)
  names = arrays.get("class_names")
  names = _names(names, len(names) if names is not None
                 else _count(labels, fault))
  if not {*(classes or ())} <= {*names} and {
      "targets20", "voc20_names"} <= {*arrays}:
    return (arrays["targets20"], _names(arrays["voc20_names"], _VOC_CLASSES),
            1 + np.arange(_VOC_CLASSES))
  class_ids = arrays.get("class_ids", arrays.get("class_label_ids"))
  if class_ids is None:
    return labels, names, None
  if class_ids.shape != (len(names),) or class_ids.dtype.kind not in "iu":
    raise fault(f"class_ids must be {len(names)} whole numbers, as there are "
                f"classes; got {class_ids.dtype} {list(class_ids.shape)}.")
  return labels, names, class_ids.astype(int)


def _names(names: np.ndarray | None, count: int) -> tuple[str, ...]:
  if names is None:
    return tuple(map(str, range(count)))
  return tuple(names.astype(str).tolist())


def _count(labels: np.ndarray, fault: Callable) -> int:
  """Returns the number of classes that labels without names imply."""
  if labels.dtype.kind not in "iufb" or labels.ndim not in (1, 2) or not len(
      labels):
    raise fault("labels must be class numbers [n] or 0 and 1 [n, classes]; "
                f"got {labels.dtype} {list(labels.shape)}.")
  return labels.shape[1] if labels.shape[1:] > (1,) else 1 + int(labels.max())


def _rows(labels, count, key, fault) -> tuple[np.ndarray, bool]:
  """Returns rows of 0 and 1, and whether they are multi-label."""
  if labels.shape[1:] == (1,) and count > 1:
    labels = labels[:, 0]
  wrong = fault(
      f"{key} must be class numbers [n] below {count}, or 0 and 1 "
      f"[n, {count}]; got {labels.dtype} {list(labels.shape)}"
      + (f", {labels.min()}..{labels.max()}." if labels.size
         and labels.dtype.kind in "iufb" else "."))
  if labels.ndim == 1 and labels.dtype.kind in "iu":
    if len(labels) and not 0 <= labels.min() <= labels.max() < count:
      raise wrong
    return np.eye(count, dtype=np.float32)[labels], False
  if (labels.ndim != 2 or labels.shape[1] != count
      or labels.dtype.kind not in "iufb" or not np.isin(labels, (0, 1)).all()):
    raise wrong
  rows = labels.astype(np.float32)
  return rows, count == 1 or bool((rows.sum(1) != 1).any())


def _split(whole: Part, split: np.ndarray, fault: Callable) -> dict[str, Part]:
  """Splits into the file's parts, given as 0, 1, 2 or by their names."""
  names = dict(enumerate(PARTS))
  numbers = split.tolist()
  if split.dtype.kind in "US":
    names = {name: name for name in PARTS}
    numbers = [str(value) for value in split.astype(str)]
  others = {*numbers} - {*names}
  if split.ndim != 1 or others:
    raise fault(f"split must hold {[*names]}; got {sorted(others)[:5]}.")
  return {name: cut(whole, np.array([number == key for number in numbers]))
          for key, name in names.items()}
