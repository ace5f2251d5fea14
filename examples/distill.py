"""Trains thinner models of the teacher's architecture.

    python -m examples.distill --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --divisor=4 --divisor=8 --arm=distillation \
        --arm=swa_distillation

These are the students of Park et al. 2020. Every layer has a half, a quarter or
an eighth of the teacher's filters, with fresh weights. With `--reconstruct` a
student starts from filters of the teacher. Pruning removes the filters that
later layers can best compensate for, and refits those layers. The script judges
each student's int8 .tflite file and adds a row for it to results.jsonl.
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
  """Trains students of every width, in every variant, with every seed."""
  running.start(argv)
  name = "obs_narrow+refine" if RECONSTRUCT.value else "narrow"
  running.run_grid([(name, divisor) for divisor in DIVISOR.value])


if __name__ == "__main__":
  app.run(main)
