"""Combines compressions: each step preserves what the steps before it did.

    python -m examples.combine --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --way=prune+qat --way=prune+cluster+qat --sparsity=0.8 \
        --arm=plain --arm=swa_distillation

Tfmot's preserving schemes keep pruned weights at zero and clusters intact
during quantization. "calibrated_qat" starts from kernels and ranges that fit 8
bits. The script judges the int8 .tflite files and adds a row for each to
results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running
from examples.experiment.runs.compressing import CLUSTERS, COMPRESSIONS

_WAYS = [name for name in COMPRESSIONS if "+" in name or name == "cluster"]

running.define_run_flags("out/combine")
WAY = flags.DEFINE_multi_enum(
    "way", ["prune+qat", "prune+cluster+qat"], _WAYS, "What after what.")
SPARSITY = flags.DEFINE_multi_float(
    "sparsity", [0.8], "Share of weights, or of filters, that goes.")


def main(argv: list[str]) -> None:
  """Runs every combination, in every variant, with every seed."""
  running.start(argv)
  running.run_grid([
      (way, strength) for way in WAY.value
      for strength in ([float(CLUSTERS)] if way.startswith("cluster")
                       else SPARSITY.value)])


if __name__ == "__main__":
  app.run(main)
