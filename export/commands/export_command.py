r"""The command `kap-export`: turns a model into files for a device.

    kap-export --model=net.h5 --layer=relu5 --images=train.npz \
        --output=net.tflite

    kap-export --target=microcontroller --model=net.h5 --layer=relu5 \
        --images=train.npz --test_images=test.npz --labels=labels.txt \
        --name=animals --output=firmware/animals

Writes one .tflite file for phones, or the C sources of a firmware project,
whole or not at all. Prints sizes, the road to the map with its reason, and the
memory that the file needs. net.json beside net.h5, from examples.train_teacher,
gives the range of pixels, and the layer and labels that flags leave out. Exits
0, or 2 on bad input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from keras_attr_preserve.export.commands.inputs import (
  define_loading_flags,
  load_images,
  load_teacher,
)
from keras_attr_preserve.export.commands.run_command import run_command
from keras_attr_preserve.export.commands.sidecars import (
  Sidecar,
  check_range,
  read_sidecar,
  settled,
)
from keras_attr_preserve.export.conversion.convert import (
  MODES,
  TARGETS,
  convert,
)
from keras_attr_preserve.export.firmware.microcontroller import microcontroller
from keras_attr_preserve.export.runtime.explain_cost import explain_cost
from keras_attr_preserve.export.runtime.inspect_file import inspect_file
from keras_attr_preserve.training.wcam import WCAM
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

__all__ = ["main", "run"]

_NEEDED = ("model", "layer", "output")


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()

  def text(name, help_text, default=None):
    flags.DEFINE_string(name, default, help_text, flag_values=values)

  flags.DEFINE_enum(
      "target", "phone", TARGETS, "What runs it.", flag_values=values)
  text("model", "The model that ships: a tf_keras .h5 or .keras file, or a "
       "SavedModel folder; pruned, clustered or quantize-aware as it came from "
       "training.")
  define_loading_flags(values)
  text("layer", "The layer that is explained; what a .json file beside the "
       "model says, if not given.")
  flags.DEFINE_enum("method", "swa", ["swa", "ewa"], "The map; see WCAM.",
                    flag_values=values)
  flags.DEFINE_enum(
      "mode", "int8", MODES, "The file's numbers; int8 for a microcontroller.",
      flag_values=values)
  text("road", "The way to the map; see convert.", "auto")
  text("images", "Training pictures, a hundred or more, in the range the model "
       "takes, to measure ranges and maps on: .npy, or .npz with the key "
       "--images_key. Needed for integers unless the model is quantize-aware.")
  text("images_key", "Key of the pictures in an .npz.", "images")
  text("test_images", "Pictures the model has not seen, for test vectors of a "
       "microcontroller: .npy or .npz.")
  text("test_images_key", "Key of those in an .npz.", "images")
  text("labels", "Text file with the name of a class in each line, for a "
       "microcontroller; what a .json file beside the model says, if not "
       "given.")
  text("name", "C identifier that a microcontroller's files begin with.")
  text("output", "The .tflite file, or the folder of C sources.")
  return values


def _exported(values: flags.FlagValues, rest: list[str]) -> str:
  """Exports the model and returns a summary of the files."""
  if rest:
    raise ValueError(f"unknown arguments: {' '.join(rest)}.")
  micro = values.target == "microcontroller"
  known = Sidecar(Path()) if values.model is None else read_sidecar(
      values.model)
  layer = known.layer if values.layer is None else values.layer
  needed = [*_NEEDED, *(["name"] if micro else [])]
  missing = [f"--{name}" for name in needed if values[name].value is None
             and not (name == "layer" and layer)]
  if missing:
    raise ValueError(f"{', '.join(missing)} must be given.")
  others = [] if micro else ["name", "labels", "test_images"]
  unused = [f"--{name}" for name in others if values[name].value is not None]
  if unused:
    raise ValueError(
        f"{', '.join(unused)}: only for --target=microcontroller.")
  output = Path(values.output)
  if micro and (values.mode != "int8" or values.road != "auto"):
    raise ValueError(
        "--target=microcontroller takes --mode=int8 and --road=auto; got "
        f"{values.mode!r} and {values.road!r}.")
  if not micro:
    if output.is_dir():
      raise IsADirectoryError(
          f"--output must be a file for phones; {values.output!r} is a folder.")
    make_folder(output.parent, "--output")  # Before the work.
  images = _images(values, "images", known)
  labels = _labels(values, known) if micro else None
  model = load_teacher(values.model, values, "--model")
  wcam = WCAM(layer, method=values.method)
  if micro:
    return _firmware(values, model, wcam, images, labels, known)
  content = convert(
      model, wcam, mode=values.mode, representative_images=images,
      road=values.road)
  write_whole(output, content)
  return "\n".join([_summary(output, content),
                    _row("explain", explain_cost(content))])


def _images(
    values: flags.FlagValues, name: str, known: Sidecar) -> np.ndarray | None:
  path = values[name].value
  if path is None:
    return None
  images = load_images(path, values[f"{name}_key"].value, f"--{name}")
  check_range(images, known, f"--{name}")
  return images


def _labels(values: flags.FlagValues, known: Sidecar) -> list[str] | None:
  given = None
  if values.labels is not None:
    given = tuple(Path(values.labels).read_text().splitlines())
  labels = settled("labels", given, known.class_names, known.path)
  return None if labels is None else list(labels)


def _firmware(values, model, wcam: WCAM, images, labels, known: Sidecar) -> str:
  microcontroller(
      model, wcam, values.output, name=values.name,
      representative_images=images,
      test_images=_images(values, "test_images", known), labels=labels)
  file = Path(values.output) / f"{values.name}.tflite"
  names = sorted(path.name for path in Path(values.output).iterdir())
  return "\n".join([_summary(file, file.read_bytes()),
                    _row("files", ", ".join(names))])


def _row(name: str, value: Any) -> str:
  return f"{name:<16}{value}"


def _summary(path: Path, content: bytes) -> str:
  """Describes a file in a few lines."""
  report = inspect_file(content)
  facts = report.attribution
  lines = [
      _row("written", path),
      _row("bytes", f"{report.bytes:,}; gzipped {report.bytes_gzipped:,}"),
      _row("sparsity", f"{report.sparsity:.1%}"),
      *(_row(name.replace("_", " "), value) for name, value in facts.items())]
  if report.arena_phone is not None:
    lines.append(_row("arena, LiteRT", f"about {report.arena_phone:,} bytes"))
  if report.arena_measured is not None:
    lines.append(_row(
        "arena, TFLM", f"{report.arena_measured.smallest:,} bytes "
        f"({report.arena_measured.head:,} of them tensors)"))
  elif report.arena_head is not None:
    lines.append(_row("arena, TFLM", f"{report.arena_head:,} bytes of tensors, "
                      "and what the interpreter adds"))
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Exports the model and prints the summary.

  Args:
    argv: the program and its arguments.

  Returns:
    The exit code: 0 or 2.
  """
  return run_command("kap-export", __doc__, _flags(), argv, _exported)


def run() -> None:
  """Runs the installed command."""
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  run()
