"""Writes an inspection as text."""

from typing import Any

__all__ = ["text"]


def text(found: Any) -> str:
  """Lists the contents of a file.

  Args:
    found: an `Inspection`.

  Returns:
    Lines of text, the tensors last.
  """
  return "\n".join([
      *_file(found), "", *_attribution(found), "", *_signatures(found), "",
      *_operators(found), "", *_memory(found), "", *_tensors(found)])


def _row(name: str, value: Any) -> str:
  return f"  {name:<16}{value}"


def _file(inspection) -> list[str]:
  types = ", ".join(
      f"{name} {count}" for name, count in inspection.types.items())
  return [
      "file",
      _row("bytes", f"{inspection.bytes:,}; gzipped "
           f"{inspection.bytes_gzipped:,}"),
      _row("sparsity", f"{inspection.sparsity:.1%} of the weights are zero"),
      _row("seal", "whole" if inspection.sealed
           else "none: not made by convert"),
      _row("tensors", types)]


def _attribution(inspection) -> list[str]:
  if inspection.attribution is None:
    return ["attribution", _row("", "none: a third party's file")]
  return ["attribution", *(
      _row(name, value) for name, value in inspection.attribution.items())]


def _signatures(inspection) -> list[str]:
  lines = ["signatures"]
  tensors = {(tensor.subgraph, tensor.index): tensor
             for tensor in inspection.tensors}
  for name, entry in inspection.signatures.items():
    lines.append(_row(name, f"subgraph {entry['subgraph']}"))
    for way, names in (("in", entry["inputs"]), ("out", entry["outputs"])):
      for key, index in names.items():
        tensor = tensors[entry["subgraph"], index]
        lines.append(f"    {way:<4}{key:<16} {_numbers(tensor)}")
  if not inspection.signatures:
    lines.append(_row("", "none; the first subgraph takes and gives"))
    lines += [f"    {entry.kind:<7} {entry.name:<24} {_numbers(entry)}"
              for entry in inspection.tensors
              if not entry.subgraph and entry.kind in ("input", "output")]
  return lines


def _operators(inspection) -> list[str]:
  lines = ["operators"]
  for number, counts in enumerate(inspection.operators):
    lines.append(_row(f"subgraph {number}", ", ".join(
        f"{name} x{count}" for name, count in counts.items()) or "none"))
  return lines


def _memory(inspection) -> list[str]:
  lines = ["TFLite Micro", _row("takes it", "yes" if inspection.tflm else "no")]
  lines += [_row("because", reason) for reason in inspection.tflm_reasons]
  if inspection.arena_head is not None:
    lines.append(_row("arena, planned", (
        f"{inspection.arena_head:,} bytes of tensors and scratch; "
        f"{inspection.arena_live:,} in use at once")))
  if inspection.arena_measured is not None:
    measured = inspection.arena_measured
    lines.append(_row("measured", (
        f"head {measured.head:,} + tail {measured.tail:,}; smallest arena "
        f"{measured.smallest:,}")))
  elif inspection.tflm:
    lines.append(_row("measured", "not: tflite-micro is not installed"))
  lines += ["", "LiteRT", _row("takes it", (
      "yes" if inspection.litert_reason is None else "no"))]
  if inspection.litert_reason is not None:
    lines.append(_row("because", " ".join(inspection.litert_reason.split())))
  if inspection.arena_phone is not None:
    lines.append(_row("arena", (
        f"about {inspection.arena_phone:,} bytes, all subgraphs together")))
  return lines


def _tensors(inspection) -> list[str]:
  lines = ["tensors"]
  for tensor in inspection.tensors:
    lines.append(f"  {tensor.subgraph}:{tensor.index:<4}{tensor.kind:<9}"
                 f"{_numbers(tensor):<50} {tensor.name}")
  return lines


def _numbers(tensor) -> str:
  """Returns shape, type and quantization of a tensor."""
  words = f"{list(tensor.shape)} {tensor.type}"
  if tensor.scale is None:
    return words
  low, high = tensor.scale
  scale = f"{low:.6g}" if tensor.channels == 1 else (
      f"{low:.4g}..{high:.4g} in {tensor.channels} channels")
  return f"{words} scale {scale} zero {tensor.zero_point}"
