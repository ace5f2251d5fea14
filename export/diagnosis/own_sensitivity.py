"""Reads sensitivities off a file made by `convert`."""

import numpy as np
from ai_edge_litert import interpreter as litert

from keras_attr_preserve.export.tflite.head import read_head
from keras_attr_preserve.export.tflite.schema import read_model, signatures

__all__ = ["own_sensitivity"]


def own_sensitivity(
    content: bytes, images: np.ndarray, weights: np.ndarray
) -> np.ndarray | None:
  """Reads the sensitivity of scores off a file made by `convert`.

  Args:
    content: the file's bytes, of method "swa".
    images: `[images, height, width, channels]`.
    weights: weights of the logits, `[images, classes]`, at most 1.

  Returns:
    `[images, channels]`, up to a factor, from the file's backward pass, else
    from the weights of its head; None for a file with neither.
  """
  model = read_model(content)
  explain = signatures(model)["explain"]
  output = "sensitivity" if "sensitivity" in explain.outputs else "features"
  head = None
  if output == "features":
    head = read_head(
        model, explain.subgraph, explain.outputs["logits"].position,
        explain.outputs["features"].position)
    if head is None:
      return None
  interpreter = litert.Interpreter(model_content=content)
  interpreter.allocate_tensors()
  run = interpreter.get_signature_runner("explain")
  feeds = {"images": images, "class_weights": weights}
  rows = []
  for i in range(len(images)):
    encoded = {name: spec.encode(feeds[name][i:i + 1])
               for name, spec in explain.inputs.items()}
    rows.append(run(**encoded)[output])
  values = explain.outputs[output].decode(np.concatenate(rows))
  return (values.reshape(len(images), -1) if head is None
          else head.sensitivity(values, weights))
