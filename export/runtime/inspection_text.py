"""An inspection in words."""

from typing import Any

__all__ = ["text"]


def text(found: Any) -> str:
  """Writes out what is in a file.

  Args:
    found: an `Inspection`.

  Returns:
    Lines for people, the tensors left to the end.
  """
  return "\n".join([
      *_file(found), "", *_attribution(found), "", *_signatures(found), "",
      *_operators(found), "", *_memory(found), "", *_tensors(found)])


def _row(name: str, value: Any) -> str:
  return f"  {name:<16}{value}"


def _file(found) -> list[str]:
  types = ", ".join(f"{name} {count}" for name, count in found.types.items())
  return [
      "file",
      _row("bytes", f"{found.bytes:,}; gzipped {found.bytes_gzipped:,}"),
      _row("sparsity", f"{found.sparsity:.1%} of the weights are zero"),
      _row("seal", "whole" if found.sealed else "none: not made by convert"),
      _row("tensors", types)]


def _attribution(found) -> list[str]:
  if found.attribution is None:
    return ["attribution", _row("", "none: a third party's file")]
  return ["attribution", *(
      _row(name, value) for name, value in found.attribution.items())]


def _signatures(found) -> list[str]:
  lines = ["signatures"]
  tensors = {(one.subgraph, one.index): one for one in found.tensors}
  for name, one in found.signatures.items():
    lines.append(_row(name, f"subgraph {one['subgraph']}"))
    for way, names in (("in", one["inputs"]), ("out", one["outputs"])):
      for key, index in names.items():
        tensor = tensors[one["subgraph"], index]
        lines.append(f"    {way:<4}{key:<16} {_numbers(tensor)}")
  if not found.signatures:
    lines.append(_row("", "none; the first subgraph takes and gives"))
    lines += [f"    {one.kind:<7} {one.name:<24} {_numbers(one)}"
              for one in found.tensors
              if not one.subgraph and one.kind in ("input", "output")]
  return lines


def _operators(found) -> list[str]:
  lines = ["operators"]
  for number, counts in enumerate(found.operators):
    lines.append(_row(f"subgraph {number}", ", ".join(
        f"{name} x{count}" for name, count in counts.items()) or "none"))
  return lines


def _memory(found) -> list[str]:
  lines = ["TFLite Micro", _row("takes it", "yes" if found.tflm else "no")]
  lines += [_row("because", reason) for reason in found.tflm_reasons]
  if found.arena_head is not None:
    lines.append(_row("arena, planned", (
        f"{found.arena_head:,} bytes of tensors and scratch; "
        f"{found.arena_live:,} in use at once")))
  if found.arena_measured is not None:
    one = found.arena_measured
    lines.append(_row("measured", (
        f"head {one.head:,} + tail {one.tail:,}; smallest arena "
        f"{one.smallest:,}")))
  elif found.tflm:
    lines.append(_row("measured", "not: tflite-micro is not installed"))
  lines += ["", "LiteRT", _row("takes it", (
      "yes" if found.litert_reason is None else "no"))]
  if found.litert_reason is not None:
    lines.append(_row("because", " ".join(found.litert_reason.split())))
  if found.arena_phone is not None:
    lines.append(_row("arena", (
        f"about {found.arena_phone:,} bytes, all subgraphs together")))
  return lines


def _tensors(found) -> list[str]:
  lines = ["tensors"]
  for one in found.tensors:
    lines.append(f"  {one.subgraph}:{one.index:<4}{one.kind:<9}"
                 f"{_numbers(one):<50} {one.name}")
  return lines


def _numbers(one) -> str:
  """Shape, type and quantization of a tensor."""
  words = f"{list(one.shape)} {one.type}"
  if one.scale is None:
    return words
  low, high = one.scale
  scale = f"{low:.6g}" if one.channels == 1 else (
      f"{low:.4g}..{high:.4g} in {one.channels} channels")
  return f"{words} scale {scale} zero {one.zero_point}"
