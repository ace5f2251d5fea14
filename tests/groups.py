"""The groups of slow tests, what each holds, and whose turn it is.

    python tests/groups.py            # lists them
    python tests/groups.py --turn=7   # names the group of the seventh commit
"""

import sys

GROUPS = {
    "binaries": "the experiment binaries and the quickstart, as processes",
    "experiments": "runs, arms, grids and data sets of the experiments",
    "training": "long fits, weights that move, ways of calling fit",
    "compressions": "every kind of compression, held and converted",
    "saving": "compressed models there and back, tfmot's rules on known ones",
    "pruning": "filters and weights taken away from larger models",
    "files": "conversions in every mode, files of others, damaged files",
    "firmware": "C sources, TFLite Micro, emulated boards",
    "explaining": "every attribution method on every kind of model",
    "pretrained": "pretrained models and files of others (KAP_MODEL_DIR)",
    "photographs": "pretrained models trained, judged, on microcontrollers",
    "applications": "every method on models of keras.applications",
    "deep_applications": "the same on DenseNet, Xception, Inception, NASNet",
    "devices": "several devices and workers, Keras 3 models",
}


def turn(number: int) -> str:
  """Names the group whose turn it is: each comes round."""
  return tuple(GROUPS)[number % len(GROUPS)]


if __name__ == "__main__":
  if len(sys.argv) > 1:
    print(turn(int(sys.argv[1].removeprefix("--turn="))))
  else:
    for name, holds in GROUPS.items():
      print(f"  GROUP={name:<18} {holds}")
