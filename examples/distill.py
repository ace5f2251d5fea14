"""Trains thinner nets of the teacher's architecture.

    python -m examples.distill --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --divisor=4 --divisor=8 --arm=distillation \
        --arm=swa_distillation

The students of Park et al. 2020: a half, a quarter, an eighth of the filters of
every layer, from fresh weights. With `--reconstruct` they start from those of
the teacher's own filters that the layers behind make up for best, with these
layers refitted. Each ships as an int8 .tflite file, which is what is judged.
Adds a row for each to results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running

running.define_run_flags("out/distill")
DIVISOR = flags.DEFINE_multi_float(
    "divisor", [4.0], "By how much the widths are divided.")
RECONSTRUCT = flags.DEFINE_bool(
    "reconstruct", False, "Start from the teacher's filters instead of fresh "
    "weights.")


def main(argv: list[str]) -> None:
  """Distills to every width, in every arm, with every seed."""
  running.start(argv)
  name = "obs_narrow+refine" if RECONSTRUCT.value else "narrow"
  running.run_grid([(name, one) for one in DIVISOR.value])


if __name__ == "__main__":
  app.run(main)
