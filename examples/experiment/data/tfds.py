"""Pictures from TensorFlow Datasets, where that is installed.

https://www.tensorflow.org/datasets. A data set that is not on the machine yet
is downloaded by that library.
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
  """Reads labels and the pictures' files into memory.

  Args:
    name: the data set's, as "voc/2012". Its examples must have "image", and
      "labels" (those without difficult objects, if told), "label" or "objects".
    classes: where classes exclude each other, pictures of others are not kept.
    seed: which of train's pictures are for validation, where the data set has
      no such split.
    limit: where given, no more than is needed for it is read.

  Returns:
    The source, without masks. Where the test split has no labels, as VOC 2012's
    has not, the test part is the split "validation".

  Raises:
    ImportError: the library is missing.
    ValueError: the data set has no train split, no other with labels, or no
      such features.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
        f"name: 'tfds:{name}' needs TensorFlow Datasets: pip install "
        "tensorflow-datasets") from error
  builder = tensorflow_datasets.builder(name)
  features = builder.info.features
  key = next((one for one in _LABELS if one in features), None)
  if "image" not in features or key is None:
    raise ValueError(
        f"name: 'tfds:{name}' must have the features image and labels, label "
        f"or objects; got {[*features]}.")
  names = _class_names(features[key], key)
  check_known(classes or (), names)
  builder.download_and_prepare()

  def examples(split):
    # The files as they are: decoded, they would not fit into memory.
    return tensorflow_datasets.as_numpy(builder.as_dataset(
        split=split,
        decoders={"image": tensorflow_datasets.decode.SkipDecoding()}))

  def rows(split):
    for i, one in enumerate(examples(split)):
      row = _row(one[key], key, len(names))
      if key == "label" and classes is not None and not any(
          row[i] and names[i] in classes for i in range(len(names))):
        continue
      yield Picture(f"picture {i} of {name} {split}", one["image"]), row

  splits = [*builder.info.splits]
  judged = next((split for split in ("test", "validation") if split in splits
                 and _labelled(examples(split), key, len(names))), None)
  if "train" not in splits or judged is None:
    raise ValueError(
        f"name: 'tfds:{name}' must have a split train, and a test or "
        f"validation with labels; got {splits}.")
  own = judged == "test" and "validation" in splits
  parts = {"test": _part(rows(judged), limit, judged, len(names))}
  most = limit if own or limit is None else 2 * limit
  parts["train"] = _part(rows("train"), most, "train", len(names))
  if own:
    parts["validation"] = _part(
        rows("validation"), limit, "validation", len(names))
  else:
    parts["train"], parts["validation"] = hold_out(parts["train"], seed)
  return Source(parts, names, np.zeros(len(names), int), key != "label",
                () if own else ("validation",))


def _class_names(feature: Any, key: str) -> tuple[str, ...]:
  if key == "objects":
    feature = feature.feature["label"]
  elif key != "label":
    feature = feature.feature
  return tuple(feature.names)


def _row(value: Any, key: str, count: int) -> np.ndarray:
  """1 where a class is there; all 0 where nothing is told."""
  row = np.zeros(count, np.float32)
  if key == "objects":
    hard = value.get("is_difficult", np.zeros(len(value["label"]), bool))
    value = value["label"][~np.asarray(hard, bool)]
  numbers = np.atleast_1d(value)
  row[numbers[numbers >= 0].astype(int)] = 1
  return row


def _labelled(examples: Iterable, key: str, count: int) -> bool:
  """Whether the first pictures have labels."""
  return any(_row(one[key], key, count).any()
             for one in itertools.islice(examples, _PEEK))


def _part(
    rows: Iterable, limit: int | None, title: str, count: int
) -> Part:
  pictures, labels = [], []
  for picture, row in tqdm(itertools.islice(rows, limit), desc=title, delay=1,
                           disable=None, leave=False):
    pictures.append(picture)
    labels.append(row)
  return Part(pictures, np.array(labels, np.float32).reshape(-1, count))
