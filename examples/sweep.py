"""Runs a grid of compressions, strengths, variants and seeds, and reports.

    python -m examples.sweep --flagfile=examples/experiment/flags/digits.cfg \
        --output=out/digits
    python -m examples.sweep --teacher=out/teacher/teacher.h5 --layers=relu4 \
        --grid="prune:0.8,0.9;filters:0.5;narrow:4;ptq;qat" --seed=1 --seed=2
    python -m examples.sweep --teacher=out/teacher/teacher.h5 --layers=relu4 \
        --grid="none;lamp:0.8@plain;obs+refine:0.8@plain,e2kd,swa_hints"

The sweep skips runs that have a row in results.jsonl, so it resumes where it
stopped. `--minutes` stops it between two runs. The sweep writes tables and
plots of all rows at the end. TensorFlow keeps some memory of each training. So
the sweep continues in a fresh process after `--restart_after` runs.
"""

import os
import sys
import time

from absl import app, flags
from tqdm import tqdm

from examples.experiment.report.results_page import write_report
from examples.experiment.report.student_pictures import draw_students
from examples.experiment.report.summaries import settings_of
from examples.experiment.runs import running
from examples.experiment.runs.grids import read_grid
from examples.experiment.runs.variants import ARMS

running.define_flags("out/sweep")
GRID = flags.DEFINE_string(
    "grid", "none;prune:0.9;qat", "Compressions, their strengths and, after @, "
    "their arms.")
ARM = flags.DEFINE_multi_enum(
    "arm", [*ARMS], [*ARMS], "What students learn besides; no other is run.")
SEED = flags.DEFINE_multi_integer(
    "seed", [1, 2, 3], "Seeds of weights and batches.")
MINUTES = flags.DEFINE_float(
    "minutes", None, "Begin no run after so long.", lower_bound=0.0)
RESTART_AFTER = flags.DEFINE_integer(
    "restart_after", 10, "Go on in a fresh process after so many runs, for "
    "memory; 0 for never.", lower_bound=0)
NOTES = flags.DEFINE_string(
    "notes", None, "A Markdown file with what there is to say of the results.")
PICTURES = flags.DEFINE_bool(
    "pictures", True, "Draw where kept students look; not for pictures that "
    "may not be shown.")
REPORT = flags.DEFINE_string(
    "report", None, "Folder of tables and plots; --output/report if not set.")

_STARTED = "KAP_SWEEP_STARTED"  # Hands the first process's start on.


def restart(started: float) -> None:
  """Puts a fresh process with the same flags in this one's place."""
  sys.stdout.flush()
  sys.stderr.flush()
  os.environ[_STARTED] = str(started)
  os.execv(sys.executable,
           [sys.executable, "-m", "examples.sweep", *sys.argv[1:]])


def main(argv: list[str]) -> None:
  """Runs the missing runs, then writes tables and plots."""
  running.start(argv)
  # Of the clock that all processes share.
  started = float(os.environ.pop(_STARTED, time.time()))
  try:
    runs = read_grid(GRID.value, ARM.value, SEED.value)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  experiment = running.open_experiment()
  missing = [run for run in runs if experiment.find(run) is None]
  print(f"{len(runs) - len(missing)} of {len(runs)} runs are in "
        f"{experiment.path}.")
  experiment.references()
  with tqdm(missing, unit="run") as bar:
    for number, run in enumerate(bar):
      if number and number == RESTART_AFTER.value:
        bar.close()
        restart(started)
      if MINUTES.value is not None and (
          time.time() - started > 60 * MINUTES.value):
        print(f"\nstopped after {MINUTES.value:g} minutes; "
              f"{len(missing) - number} runs are left.")
        break
      bar.set_description(run.name)
      tqdm.write(running.show(experiment.run(run)))
  if not settings_of(experiment.rows()):
    return
  if PICTURES.value:
    draw_students(experiment, SEED.value[0])
  notes = ""
  if NOTES.value:
    with open(NOTES.value, encoding="utf-8") as file:
      notes = file.read()
  for path in write_report(
      experiment.folder, REPORT.value or experiment.folder / "report",
      command=running.command("sweep"), notes=notes, runs=runs):
    print(path)


if __name__ == "__main__":
  app.run(main)
