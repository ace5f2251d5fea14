"""Quantizes a net to int8, after training or while it trains on.

    python -m examples.quantize --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --way=ptq --way=qat --arm=plain --arm=swa_distillation

"ptq", post-training quantization, trains nothing and has but one arm; "qat" is
quantization-aware training, "calibrated_qat" the same from equalized kernels
and calibrated ranges. The int8 .tflite file is what is judged. Adds a row for
each to results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running

running.define_run_flags("out/quantize")
WAY = flags.DEFINE_multi_enum(
    "way", ["ptq", "qat"], ["ptq", "qat", "calibrated_qat"],
    "When to quantize, and from where.")


def main(argv: list[str]) -> None:
  """Quantizes in every way, in every arm, with every seed."""
  running.start(argv)
  running.run_grid([(way, 8.0) for way in WAY.value])


if __name__ == "__main__":
  app.run(main)
