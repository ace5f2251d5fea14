"""Prunes single weights of a model in rounds, as in Park et al. 2020.

    python -m examples.prune --teacher=out/teacher/teacher.h5 --layers=relu4 \
        --sparsity=0.9 --sparsity=0.97 --arm=plain --arm=swa_distillation

Each round removes a fifth of the remaining weights, by magnitude. The first and
the last layer stay whole. `--by_layer` removes more from layers that can spare
more. `--reconstruct` does so in one step, by pruning with reconstruction, and
then trains the remaining weights. The script judges each student's int8 .tflite
file and adds a row for it to results.jsonl.
"""

from absl import app, flags

from examples.experiment.runs import running

running.define_run_flags("out/prune")
SPARSITY = flags.DEFINE_multi_float(
    "sparsity", [0.9], "Share of the weights that goes.")
BY_LAYER = flags.DEFINE_bool(
    "by_layer", False, "Take most where layers can spare most (LAMP), in place "
    "of as much from each.")
RECONSTRUCT = flags.DEFINE_bool(
    "reconstruct", False, "Take it all at once, most where layers can spare "
    "most, and refit what is left before it is trained: --refine_steps.")


def main(argv: list[str]) -> None:
  """Prunes at every sparsity, in every variant, with every seed."""
  running.start(argv)
  name = "lamp" if BY_LAYER.value else "prune"
  if RECONSTRUCT.value:
    name = "obs+refine"
  running.run_grid([(name, sparsity) for sparsity in SPARSITY.value])


if __name__ == "__main__":
  app.run(main)
