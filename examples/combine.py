"""Compresses in several ways, one after another, each keeping the last.

    python -m examples.combine --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --way=prune+qat --way=prune+cluster+qat --sparsity=0.8 \
        --arm=plain --arm=swa_distillation

Pruned weights stay zero and clusters stay clusters under the quantization that
follows, by tfmot's preserving schemes; "calibrated_qat" begins it from kernels
and ranges that 8 bits are enough for. The int8 .tflite file is what is judged.
Adds a row for each to results.jsonl.
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
  """Combines in every way, in every arm, with every seed."""
  running.start(argv)
  running.run_grid([
      (way, strength) for way in WAY.value
      for strength in ([float(CLUSTERS)] if way.startswith("cluster")
                       else SPARSITY.value)])


if __name__ == "__main__":
  app.run(main)
