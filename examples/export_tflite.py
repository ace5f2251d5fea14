"""Converts a model to a .tflite file that also computes its attribution maps.

    python -m examples.export_tflite --model=out/prune/students/NAME.h5 \
        --mode=int8 --output=out/net.tflite

Images of the training part calibrate the ranges of int8.
"""

from absl import app, flags

import keras_attr_preserve as kap
from examples.experiment.runs import running
from examples.experiment.runs.experiment import calibration
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

running.define_data_flags()
MODEL = flags.DEFINE_string("model", None, "The net, as kap.load_model takes.")
LAYER = flags.DEFINE_string(
    "layer", None, "The layer that is explained; what the .json file beside "
    "the net says, if not given.")
MODE = flags.DEFINE_enum(
    "mode", "int8", ["float32", "float16", "dynamic", "int8", "int16x8"],
    "What the numbers are stored as.")
TARGET = flags.DEFINE_enum(
    "target", "phone", ["phone", "microcontroller"], "What the file is for.")
OUTPUT = flags.DEFINE_string("output", "out/net.tflite", "The file to write.")


def main(argv: list[str]) -> None:
  """Converts the model and prints a summary of the file."""
  running.start(argv)
  known = running.adopt(MODEL.value, "--model")
  data = running.load_data()
  model = running.read_net(data, MODEL.value, known, "--model")
  layer = LAYER.value or known.layer or (
      "relu3" if running.FLAGS.smoke else None)
  if layer is None:
    raise app.UsageError("--layer must name the layer that is explained.")
  content = kap.export.convert(
      model, kap.WCAM(layer), mode=MODE.value, target=TARGET.value,
      representative_images=calibration(data, running.pixel_range()))
  folder, _, name = OUTPUT.value.rpartition("/")
  path = make_folder(folder or ".", "--output") / name
  write_whole(path, content)
  print(kap.export.inspect_file(content))
  print(path)


if __name__ == "__main__":
  app.run(main)
