"""Reads layer and method from files, so that callers need not repeat them."""

from collections.abc import Mapping
from typing import Any

from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tflite.schema import read_metadata
from keras_attr_preserve.models.layers import unwrapped_name
from keras_attr_preserve.training.wcam import WCAM, check_wcam

__all__ = ["check_layer", "check_method", "file_metadata", "known_wcam"]


def file_metadata(content: bytes) -> dict[str, Any] | None:
  """Reads the metadata of `convert`; None if `convert` did not make the file.

  Args:
    content: the file's bytes.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one.
  """
  # This checks the seal; with "tflm" nothing runs yet.
  metadata = read_metadata(checked_model(content, "tflm"))
  if metadata is not None and not (isinstance(metadata, dict) and all(
      isinstance(metadata.get(name), str) for name in ("layer", "method"))):
    raise ValueError(
        "tflite_model is damaged: its metadata name no layer and method; got "
        f"{metadata}.")
  return metadata


def known_wcam(metadata: Mapping[str, Any] | None, wcam: WCAM | None) -> WCAM:
  """Returns the WCAM that fits a file: the given one, or the file's own.

  Args:
    metadata: the file's metadata; see `file_metadata`.
    wcam: the caller's WCAM; None for the file's own.

  Raises:
    TypeError: `wcam` is no WCAM.
    ValueError: `wcam` names another layer or method than the file was made for;
      or it is None and the file has no metadata.
  """
  if wcam is not None:
    check_wcam(wcam)
  if metadata is None:
    if wcam is None:
      raise ValueError(
          "wcam must name the layer and the method: the file was not made by "
          "kap.export.convert and does not say them; got None.")
    return wcam
  if wcam is None:
    return WCAM(metadata["layer"], method=metadata["method"])
  check_method(metadata, wcam.method)
  check_layer(metadata, wcam.student_layers[0])
  return wcam


def check_method(
    metadata: Mapping[str, Any], method: str, name: str = "the file") -> None:
  """Raises ValueError if a file explains by another method."""
  if metadata["method"] != method:
    raise ValueError(
        f"wcam has method {method!r}, but {name} was converted for "
        f"{metadata['method']!r}.")


def check_layer(
    metadata: Mapping[str, Any], layer: str, name: str = "the file",
    given: str = "wcam names layer",
) -> None:
  """Raises ValueError if a file explains another layer.

  Args:
    metadata: the file's metadata.
    layer: a layer of the file's Keras model, with or without tfmot's prefixes.
    name: the file's name in the error.
    given: how the error begins.
  """
  known = metadata["layer"]
  if unwrapped_name(known) != unwrapped_name(layer):
    raise ValueError(
        f"{given} {layer!r}, but {name} was converted for {known!r}: name that "
        "one, where only the teacher's is called otherwise as the student's "
        "(WCAM's student_layer), or convert the model again.")
