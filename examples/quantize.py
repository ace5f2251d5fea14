"""Quantizes a model to int8, after training or during further training.

    python -m examples.quantize --teacher=out/teacher/teacher.h5 \
        --layers=relu4 --way=ptq --way=qat --arm=plain --arm=swa_distillation

"ptq" is post-training quantization: it trains nothing and has one variant.
"qat" is quantization-aware training. "calibrated_qat" is the same from
equalized kernels and calibrated ranges. The script judges each int8 .tflite
file and adds a row for it to results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running

running.define_run_flags("out/quantize")
WAY = flags.DEFINE_multi_enum(
    "way", ["ptq", "qat"], ["ptq", "qat", "calibrated_qat"],
    "When to quantize, and from where.")


def main(argv: list[str]) -> None:
  """Quantizes in every way, in every variant, with every seed."""
  running.start(argv)
  running.run_grid([(way, 8.0) for way in WAY.value])


if __name__ == "__main__":
  app.run(main)
