"""Removes whole filters of a model at once, the smallest by L1 norm.

    python -m examples.prune_filters --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --share=0.5 --share=0.7 --arm=plain \
        --arm=swa_distillation

`--reconstruct` removes the filters that later layers can best compensate for,
and refits those layers. It removes more from layers that can spare more.
`--of=macs` removes enough filters to reduce the multiply-accumulates by the
share. The student is an ordinary smaller model, and training continues. The
script judges each student's int8 .tflite file and adds a row for it to
results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running

running.define_run_flags("out/prune_filters")
SHARE = flags.DEFINE_multi_float(
    "share", [0.5], "Share of the filters that goes, of every layer.")
RECONSTRUCT = flags.DEFINE_bool(
    "reconstruct", False, "Take the share of all layers together, most where "
    "most are spared, and refit what reads them before it is trained.")
OF = flags.DEFINE_enum(
    "of", "filters", ["filters", "macs"],
    "What the share is of; without --reconstruct filters.")


def main(argv: list[str]) -> None:
  """Removes every share, in every variant, with every seed."""
  running.start(argv)
  if OF.value != "filters" and not RECONSTRUCT.value:
    raise app.UsageError(f"--of={OF.value} needs --reconstruct.")
  name = f"obs_{OF.value}+refine" if RECONSTRUCT.value else "filters"
  running.run_grid([(name, share) for share in SHARE.value])


if __name__ == "__main__":
  app.run(main)
