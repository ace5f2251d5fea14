"""Images from TensorFlow Datasets, if that is installed.

https://www.tensorflow.org/datasets. The library downloads data sets that are
not on the machine.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.experiment.data.parts import check_known, hold_out
from examples.experiment.data.reading import Part, Picture, Source

__all__ = ["open_tfds"]

_LABELS = ("labels_no_difficult", "labels", "label", "objects")
_PEEK = 50


def open_tfds(
    name: str,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Source:
  """Reads labels and the images' files into memory.

  Args:
    name: the data set's name, such as "voc/2012". Its examples must have
      "image", and "labels", "label" or "objects". "labels_no_difficult" goes
      before these.
    classes: if classes exclude each other, only images of these are kept.
    seed: chooses the validation images from train, if the data set has no
      validation split.
    limit: the function reads no more images than this limit needs.

  Returns:
    The source, without masks. If the test split has no labels, as in VOC 2012,
    the test part is the split "validation".

  Raises:
    ImportError: the library is missing.
    ValueError: the data set has no train split, no other split with labels,
      or other features.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
        f"name: 'tfds:{name}' needs TensorFlow Datasets: pip install "
        "tensorflow-datasets") from error
  builder = tensorflow_datasets.builder(name)
  features = builder.info.features
  key = next((label_key for label_key in _LABELS
              if label_key in features), None)
  if "image" not in features or key is None:
    raise ValueError(
        f"name: 'tfds:{name}' must have the features image and labels, label "
        f"or objects; got {[*features]}.")
  names = _class_names(features[key], key)
  check_known(classes or (), names)
  builder.download_and_prepare()

  def examples(split):
    # Keep files encoded: decoded images would not fit into memory.
    return tensorflow_datasets.as_numpy(builder.as_dataset(
        split=split,
        decoders={"image": tensorflow_datasets.decode.SkipDecoding()}))

  def rows(split):
    for i, example in enumerate(examples(split)):
      row = _row(example[key], key, len(names))
      if key == "label" and classes is not None and not any(
          row[i] and names[i] in classes for i in range(len(names))):
        continue
      yield Picture(f"picture {i} of {name} {split}", example["image"]), row

  splits = [*builder.info.splits]
  judged = next((split for split in ("test", "validation") if split in splits
                 and _labelled(examples(split), key, len(names))), None)
  if "train" not in splits or judged is None:
    raise ValueError(
        f"name: 'tfds:{name}' must have a split train, and a test or "
        f"validation with labels; got {splits}.")
  has_validation = judged == "test" and "validation" in splits
  listed = {"test": _part(rows(judged), limit, judged, len(names))}
  most = limit if has_validation or limit is None else 2 * limit
  listed["train"] = _part(rows("train"), most, "train", len(names))
  if has_validation:
    listed["validation"] = _part(
        rows("validation"), limit, "validation", len(names))
  else:
    listed["train"], listed["validation"] = hold_out(listed["train"], seed)
  return Source(listed, names, np.zeros(len(names), int), key != "label",
                () if has_validation else ("validation",))


def _class_names(feature: Any, key: str) -> tuple[str, ...]:
  if key == "objects":
    feature = feature.feature["label"]
  elif key != "label":
    feature = feature.feature
  return tuple(feature.names)


def _row(value: Any, key: str, count: int) -> np.ndarray:
  """Returns 1 for each class in the image; all 0 without labels."""
  row = np.zeros(count, np.float32)
  if key == "objects":
    hard = value.get("is_difficult", np.zeros(len(value["label"]), bool))
    value = value["label"][~np.asarray(hard, bool)]
  numbers = np.atleast_1d(value)
  row[numbers[numbers >= 0].astype(int)] = 1
  return row


def _labelled(examples: Iterable, key: str, count: int) -> bool:
  """Checks whether the first images have labels."""
  return any(_row(example[key], key, count).any()
             for example in itertools.islice(examples, _PEEK))


def _part(
    rows: Iterable, limit: int | None, title: str, count: int
) -> Part:
  pictures, labels = [], []
  for entry, row in tqdm(itertools.islice(rows, limit), desc=title, delay=1,
                         disable=None, leave=False):
    pictures.append(entry)
    labels.append(row)
  return Part(pictures, np.array(labels, np.float32).reshape(-1, count))
