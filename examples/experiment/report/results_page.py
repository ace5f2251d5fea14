"""Writes a page with tables, plots and images from a folder of results."""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from examples.experiment.report import tables
from examples.experiment.report.class_plots import class_bars, class_title
from examples.experiment.report.csv_files import per_class_csv, results_csv
from examples.experiment.report.figures import arm_name, strength_text
from examples.experiment.report.plot_styles import png
from examples.experiment.report.plots import closed_curves, trade_off_curves
from examples.experiment.report.summaries import Rows, settings_of, summarize
from examples.experiment.runs.experiment import Run
from examples.experiment.runs.results_file import current_rows, read_rows
from keras_attr_preserve.utils.atomic_files import (
  make_folder,
  replace_folder,
  write_whole,
)

__all__ = ["RESULTS_FILE", "write_report"]

RESULTS_FILE = "results.jsonl"

_CLASS_FIGURES = ("ap", "cosine_mean", "roc_auc")


def write_report(
    folder_of_results: str | os.PathLike,
    output_folder: str | os.PathLike,
    *,
    command: str,
    notes: str = "",
    runs: Iterable[Run] = (),
) -> list[Path]:
  """Writes `EXPERIMENT.md`, and a folder of its files beside it.

  The page shows the figures and their origin; conclusions belong in `notes`.
  The page can be written while an experiment runs.

  Args:
    folder_of_results: holds `RESULTS_FILE`, of one experiment, and the PNG
      files that the page shows, in order of their names.
    output_folder: the folder of the page, created if missing. A page of the
      same experiment and its files are replaced.
    command: the command that makes the results.
    notes: Markdown, placed after the title.
    runs: the runs of the command; the page lists runs without a row.

  Returns:
    The files written, the page first.

  Raises:
    OSError: a file cannot be read or written.
    ValueError: the results file is damaged or empty, or has several
      experiments. The name is no file name, or no compression has run.
  """
  folder = Path(folder_of_results)
  every = read_rows(folder / RESULTS_FILE)
  names = {row["experiment"] for row in every}
  if len(names) != 1 or not re.fullmatch(r"\w[\w.-]*", min(names)):
    raise ValueError(
        "folder_of_results must hold the rows of one experiment, named with "
        f"letters, digits, _, . and -; got {sorted(names)}.")
  name, rows = names.pop(), current_rows(every)
  if not settings_of(rows):
    raise ValueError(
        f"{folder / RESULTS_FILE} must hold a compressed arm; got "
        f"{sorted({row['arm'] for row in rows})}.")
  contents = {"results.csv": results_csv(every),
              "per_class.csv": per_class_csv(every)}
  pictures = {f"picture-{path.name}": path.read_bytes()
              for path in sorted(folder.glob("*.png"))}
  origin = _origin(rows, len(every) - len(rows), command, _missing(rows, runs))
  page = _page(name, rows, [notes, *origin], contents, [*pictures])
  contents |= pictures
  place = make_folder(output_folder, "output_folder") / name
  earlier = {*contents, *(path.name for path in place.glob("*.png"))}
  replace_folder(place, contents, earlier)
  # Written last: the page never links to a missing file.
  page = write_whole(place.parent / f"{name}.md", page)
  return [page, *(place / file_name for file_name in contents)]


def _page(
    name: str, rows: Rows, opening: Iterable[str],
    contents: dict[str, bytes | str], pictures: Sequence[str],
) -> str:
  """Builds the page's text, and puts its plots into `contents`."""
  sections = [f"# {name}", *opening,
              f"All rows: [results.csv]({name}/results.csv); class by class: "
              f"[per_class.csv]({name}/per_class.csv).",
              "## How to read the tables", tables.RESULTS_CAPTION,
              tables.CLOSED_CAPTION]
  for compression in dict.fromkeys(other for other, _ in settings_of(rows)):
    sections += _compression(name, rows, compression, contents)
  if pictures:
    sections += ["## Pictures", *(
        _image(name, file_name, "Pictures with the maps of some arms")
        for file_name in pictures)]
  sections += ["## What each arm costs", tables.cost_table(rows),
               "Means over n seeds; seconds are those of one run."]
  return "\n\n".join(
      section.strip() for section in sections if section.strip()) + "\n"


def _origin(
    rows: Rows, left_out: int, command: str, missing: Sequence[str]
) -> list[str]:
  """Lists command, seeds, steps, versions, time and missing runs."""
  versions = {}
  for row in rows:
    for package, version in (row.get("versions") or {}).items():
      versions.setdefault(package, {})[str(version)] = None
  facts = [f"Seeds: {_list(sorted(_seeds(rows)))}."]
  for key, text in (("steps", "Steps"), ("batch_size", "Batch size")):
    values = {row[key] for row in rows if row.get(key) is not None}
    if values:
      facts.append(f"{text}: {_list(sorted(values))}.")
  if versions:
    facts.append("Versions: " + ", ".join(
        f"{package} {' and '.join(versions[package])}"
        for package in sorted(versions)) + ".")
  time = summarize(row.get("seconds") for row in rows)
  if time.count:
    facts.append(f"Time: {time.mean * time.count / 3600:.1f} hours in all, "
                 f"{time.count} runs.")
  if left_out:
    facts.append(f"Left out here: {left_out} of the rows in the CSV files, "
                 "which were run again or with other settings later.")
  if missing:
    facts.append(f"**Not all has run.** Missing: {'; '.join(missing)}.")
  return ["## How these figures were made", f"```sh\n{command.strip()}\n```",
          *facts]


def _seeds(rows: Rows) -> set[int]:
  """Returns all seeds, except of the teacher, which has a single row."""
  return {row["seed"] for row in rows
          if row["arm"] not in ("teacher", "centre_prior")}


def _missing(rows: Rows, runs: Iterable[Run]) -> list[str]:
  """Lists the runs without a row, with their seeds."""
  there = {tuple(row[key] for key in ("compression", "strength", "arm", "seed"))
           for row in rows}
  seeds = {}
  for run in runs:
    if dataclasses.astuple(run) not in there:
      seeds.setdefault((run.compression, run.strength, run.arm), []).append(
          run.seed)
  return [
      f"{compression} {strength_text(compression, strength)} {arm_name(arm)}, "
      f"seeds {_list(run_seeds)}"
      for (compression, strength, arm), run_seeds in seeds.items()]


def _compression(
    name: str, rows: Rows, compression: str, contents: dict[str, bytes | str],
) -> list[str]:
  """Builds a compression's sections: plots, then tables by strength."""
  short = re.sub(r"[^\w.+-]", "_", compression)
  strengths = [value for other, value in settings_of(rows)
               if other == compression]
  drawings = {
      "strength": (trade_off_curves(rows, compression),
                   "Figures of each arm against strength"),
      "size": (trade_off_curves(rows, compression, against="bytes_gzipped"),
               "Figures of each arm against the gzipped file's size"),
      "closed": (closed_curves(rows, compression),
                 "Share of the gap closed by each arm against strength"),
      **{f"classes-{key}": (
          class_bars(rows, compression, strengths[-1], key),
          f"{class_title(key)} of each class at the largest strength")
         for key in _CLASS_FIGURES}}
  sections = [f"## {compression}"]
  for end, (drawing, text) in drawings.items():
    if drawing is not None:
      contents[f"{short}-{end}.png"] = png(drawing)
      sections.append(_image(name, f"{short}-{end}.png", text))
  for strength in strengths:
    sections += [f"### {compression}, {strength_text(compression, strength)}",
                 *_strength(rows, compression, strength)]
  return sections


def _strength(rows: Rows, compression: str, strength: float) -> list[str]:
  """Builds the tables of one strength; the page drops empty ones."""
  closed = tables.closed_table(rows, compression, strength)
  floats = tables.results_table(rows, compression, strength, prefix="float_")
  classes = {key: tables.per_class_table(rows, compression, strength, key)
             for key in _CLASS_FIGURES}
  return [
      tables.results_table(rows, compression, strength),
      _float_maps(rows, compression, strength),
      "Share of the gap closed:" if closed else "", closed,
      _folded("The float student, before it became a file", floats),
      *(_folded(f"Class by class: {class_title(key)}", table)
        for key, table in classes.items())]


def _float_maps(rows: Rows, compression: str, strength: float) -> str:
  """Names the files that compute their map in floats."""
  files = [row for row in rows if row.get("road") and
           (row["compression"], row["strength"]) == (compression, strength)]
  floats = [f"{arm_name(row['arm'])} (seed {row['seed']})" for row in files
            if row["road"] == "whole"]
  if not floats:
    return ""
  return (f"{len(floats)} of these {len(files)} files compute their map, and "
          "what is judged by it, from the whole net in floats, since their "
          "int8 features stray too far from the student's (the road “whole”); "
          "there only occlusion probes the integer net: "
          f"{', '.join(floats)}.")


def _folded(title: str, table: str) -> str:
  """Wraps a table so that a click opens it."""
  return (f"<details><summary>{title}</summary>\n\n{table}\n</details>"
          if table else "")


def _image(name: str, file: str, text: str) -> str:
  return f"![{text}]({name}/{quote(file)})"


def _list(values: Iterable) -> str:
  return ", ".join(map(str, values))
