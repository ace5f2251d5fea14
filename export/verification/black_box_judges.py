"""Judges see scores alone; they run on any runtime and on the teacher."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_attr_preserve.attribution.black_box import Predict
from keras_attr_preserve.attribution.occlusion import occlusion
from keras_attr_preserve.attribution.rise import rise
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["JUDGES", "Judges", "checked_judges", "judged_maps"]

Judge = Callable[[Predict, np.ndarray, np.ndarray], np.ndarray]
Judges = Sequence[str] | Mapping[str, Judge]

# Only centred maps of two models' logits can be compared; see `rise`.
JUDGES = {
    "occlusion": occlusion,
    "rise": functools.partial(rise, masks=500, centred=True),
}

_BATCH_NUMBERS = 2**24  # 64 MiB of float32.


def checked_judges(judges: Judges) -> dict[str, Judge | None]:
  """Returns each judge's function by its name, None for a name of `JUDGES`.

  Args:
    judges: names of `JUDGES`; or a mapping of new names to functions. Each
      takes a function of images, images and class numbers, and returns maps.

  Raises:
    TypeError, ValueError: `judges` is neither.
  """
  if isinstance(judges, Mapping):
    for name, judge in judges.items():
      if not (isinstance(name, str) and callable(judge)):
        raise TypeError(
            "judges must be functions by names, or names; got "
            f"{name!r}: {judge!r}.")
      if not name.isidentifier():
        raise ValueError(f"judges: a name must be an identifier; got {name!r}.")
    return dict(judges)
  unknown = [judges] if isinstance(judges, str) else [
      entry for entry in judges if entry not in JUDGES]
  if unknown:
    raise ValueError(
        f"judges must be a sequence of {tuple(JUDGES)}, or functions by names; "
        f"got {judges!r}.")
  return dict.fromkeys(judges)


def judged_maps(
    predict: Predict,
    images: np.ndarray,
    targets: np.ndarray,
    judges: Mapping[str, Judge | None],
    whose: str,
    progress: Progress = None,
    data_format: str | None = None,
) -> dict[str, np.ndarray]:
  """Makes the maps of every judge.

  Args:
    predict: maps images to logits.
    images: `[images, height, width, channels]`.
    targets: class numbers `[images]`.
    judges: the result of `checked_judges`.
    whose: name of the model that `predict` runs, for the lines of progress.
    progress: True for a line per judge on stderr; or a function of two numbers,
      images done and images in all, called anew for each judge.
    data_format: data format of the images, for `JUDGES`; see `occlusion`.

  Returns:
    Each judge's maps, `[images, any height, any width]`.

  Raises:
    ValueError: a judge returns other shapes.
  """
  size = int(np.clip(_BATCH_NUMBERS // images[0].size, 16, 1024))
  # A file refuses a batch that spans little of its input range, as masked
  # images may. So each batch also carries the image that spans most.
  along = images[[np.ptp(images.reshape(len(images), -1), axis=1).argmax()]]

  def scores(batch: np.ndarray) -> np.ndarray:
    return predict(np.concatenate([batch, along]))[:-1]

  scores.gives_logits = True  # The black boxes require it.
  maps = {}
  for name, judge in judges.items():
    if judge is None:
      shown = _line(f"{name}, {whose}") if progress is True else progress
      judge = functools.partial(
          JUDGES[name], batch_size=size, progress=shown,
          data_format=data_format)
    maps[name] = np.asarray(judge(scores, images, targets))
    if maps[name].ndim != 3 or len(maps[name]) != len(images):
      raise ValueError(
          f"judges: {name!r} must return maps [{len(images)}, height, width]; "
          f"got {list(maps[name].shape)}.")
  return maps


def _line(name: str) -> Callable[[int, int], None]:
  """Returns a function that prints progress; its calls give the total."""
  lines = {}

  def show(done: int, total: int) -> None:
    lines.setdefault(total, reporter(True, name, total))(done)
  return show
