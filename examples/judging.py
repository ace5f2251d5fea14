"""Judges compressed files against their teacher: figures, table, drawing."""

import csv
import io
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import keras_attr_preserve as kap
from examples.experiment.data.digit_scenes import CLASS_IDS, Scenes
from examples.experiment.report.pictures import map_grid
from examples.experiment.runs.costs import count_macs
from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.compat import keras
from keras_attr_preserve.evaluation.report import summarize
from keras_attr_preserve.utils.atomic_files import write_whole

__all__ = ["judge", "picture", "save", "table"]

OUTSIDE_SCENES = 100
MICRO_SCENES = 100
_MAP_SCORES = ("cosine", "spearman", "ssim", "top_k_iou")


def judge(
    models: Mapping[str, keras.Model],
    files: Mapping[str, bytes],
    wcam: kap.WCAM,
    scenes: Scenes,
) -> dict[str, dict[str, float]]:
  """Judges the teacher and every file on the same scenes and pairs.

  Args:
    models: the `tf_keras` models by name, including "teacher". The students'
      models serve the count of multiply-accumulates and the outside judge,
      which needs gradients.
    files: the .tflite files by the same names; they give all other figures.
    wcam: names the layer and the method.
    scenes: scenes that no model has seen.

  Returns:
    Figures by name, for "centre prior", "teacher" and every file. Agreement
    compares maps of the teacher's top class of each scene. Localization covers
    all (scene, class) pairs that have a mask.
  """
  teacher, layer = models["teacher"], wcam.layers[0]
  images, label_maps = scenes.images, scenes.label_maps
  which, classes = evaluation.mask_pairs(label_maps, CLASS_IDS)
  masks = label_maps[which] == CLASS_IDS[classes][:, None, None]
  valid = label_maps[which] != evaluation.VOID

  def located(maps):
    scores = evaluation.localization(maps, masks, valid)
    return {name: float(values.mean()) for name, values in scores.items()}

  prior = evaluation.centre_prior(*masks.shape[1:])
  results = {"centre prior": located(np.broadcast_to(prior, masks.shape))}

  logits = teacher.predict(images, batch_size=128, verbose=0)
  top = logits.argmax(1)
  outside = images[:OUTSIDE_SCENES], top[:OUTSIDE_SCENES]
  outside_maps = attribution.tf_explain(teacher, *outside)
  maps = attribution.grad_cam(teacher, images[which], classes, layer)
  results["teacher"] = {
      "mean_average_precision": evaluation.mean_average_precision(
          scenes.labels, logits), **located(maps)}

  for name, content in files.items():
    print(f"   {name}", flush=True)
    interpreter = kap.export.Interpreter(content)
    maps, _ = interpreter.explain(images[which], classes)
    report = kap.export.verify(content, teacher, wcam, images)
    row = results[name] = {
        "mean_average_precision": evaluation.mean_average_precision(
            scenes.labels, interpreter.predict(images)), **located(maps)}
    for score in _MAP_SCORES:
      for statistic, value in report.summary()[score].items():
        row[f"{score}_{statistic}"] = value
    row |= {"dead_maps": report.dead,
            "same_top_class": report.prediction_agreement}
    student_maps = attribution.tf_explain(models[name], *outside)
    scores = evaluation.agreement(outside_maps, student_maps)
    row |= {f"integrated_gradients_{score}": summarize(scores[score])["mean"]
            for score in ("cosine", "spearman")}
    row |= {"macs": count_macs(models[name]),
            **kap.export.file_sizes(content)}
    row |= _micro(content, teacher, wcam, images[:MICRO_SCENES])
  return results


def _micro(content, teacher, wcam, images) -> dict[str, float]:
  """Judges the file in TFLite Micro; empty if that is not installed."""
  if not kap.export.tflm_installed():
    return {}
  phone = kap.export.Interpreter(content).explain(images)
  micro = kap.export.Interpreter(content, runtime="tflm").explain(
      images, phone.logits.argmax(1))
  report = kap.export.verify(content, teacher, wcam, images, runtime="tflm")
  return {
      "tflm_cosine_mean": report.summary()["cosine"]["mean"],
      "tflm_cosine_to_litert_worst": float(np.nanmin(
          evaluation.agreement(phone.maps, micro.maps)["cosine"])),
      "tflm_same_top_class_as_litert": float(np.mean(
          phone.logits.argmax(1) == micro.logits.argmax(1))),
  }


_ROWS = (
    ("mean_average_precision", "mAP (predictions)"),
    ("same_top_class", "  same top class as teacher"),
    (None, "agreement with the teacher's maps"),
    ("cosine_mean", "  cosine, mean"),
    ("cosine_p5", "  cosine, 5th percentile"),
    ("spearman_mean", "  Spearman, mean"),
    ("spearman_p5", "  Spearman, 5th percentile"),
    ("ssim_mean", "  SSIM, mean"),
    ("ssim_p5", "  SSIM, 5th percentile"),
    ("top_k_iou_mean", "  top-10% IoU, mean"),
    ("top_k_iou_p5", "  top-10% IoU, 5th percentile"),
    ("dead_maps", "  dead maps (share)"),
    (None, "judged by a method not trained on: tf-explain's int. gradients"),
    ("integrated_gradients_cosine", "  cosine, mean"),
    ("integrated_gradients_spearman", "  Spearman, mean"),
    (None, "localization: maps against masks"),
    ("roc_auc", "  ROC-AUC"),
    ("pointing", "  pointing game"),
    ("energy_inside", "  energy inside"),
    (None, "the file"),
    ("bytes", "  bytes"),
    ("bytes_gzipped", "  bytes, gzipped"),
    ("macs", "  multiply-accumulates"),
    (None, f"the file in TFLite Micro, {MICRO_SCENES} scenes"),
    ("tflm_cosine_mean", "  cosine to teacher, mean"),
    ("tflm_cosine_to_litert_worst", "  cosine to LiteRT, worst"),
    ("tflm_same_top_class_as_litert", "  same top class as LiteRT"),
)
_WITH_GAP = frozenset({
    "cosine_mean", "cosine_p5", "spearman_mean", "spearman_p5", "ssim_mean",
    "ssim_p5", "top_k_iou_mean", "top_k_iou_p5", "integrated_gradients_cosine",
    "integrated_gradients_spearman", "roc_auc", "pointing",
})


def gap_closed(results: Mapping[str, Mapping[str, float]], key: str) -> float:
  """Returns the share of the plain loss that preservation recovers.

      (preserved - plain) / (teacher - plain)

  Args:
    results: from `judge`.
    key: a figure; the teacher's agreement with itself is 1.

  Returns:
    1 for no loss, 0 for no gain, below 0 if preservation is worse. NaN if the
    figure has no gap or plain compression lost nothing.
  """
  if key not in _WITH_GAP or not {"plain", "preserved"} <= results.keys():
    return float("nan")
  plain, preserved = results["plain"][key], results["preserved"][key]
  best = results["teacher"].get(key, 1.0)
  return (preserved - plain) / (best - plain) if best > plain else float("nan")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
  """Formats the figures as a text table."""
  names = [*results]
  lines = ["", f"{'':<33}" + "".join(f"{name:>14}" for name in names)
           + f"{'gap closed':>12}"]
  heading = []
  for key, label in _ROWS:
    if key is None:
      heading = [label]
      continue
    cells = [_cell(results[name].get(key)) for name in names]
    if not any(cells):
      continue
    lines += heading
    heading = []
    share = gap_closed(results, key)
    lines.append(f"{label:<33}" + "".join(f"{cell:>14}" for cell in cells)
                 + ("" if np.isnan(share) else f"{share:>12.0%}"))
  return "\n".join(lines)


def _cell(value: float | None) -> str:
  if value is None:
    return ""
  return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def save(
    folder: Path,
    results: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
) -> None:
  """Writes `report.json` and `report.csv`.

  Args:
    folder: the output folder.
    results: from `judge`.
    settings: all flags of the run; the report keeps the quickstart's own flags.
  """
  packages = ("tensorflow", "tf_keras", "tensorflow-model-optimization",
              "ai-edge-litert", "numpy")
  run_settings = {key: settings[key] for key in (
      "seed", "train_scenes", "test_scenes", "judge_on", "teacher_epochs",
      "tune_epochs", "quantize_epochs", "share", "weight", "target", "arm")}
  gaps = {key: gap_closed(results, key) for key, _ in _ROWS
          if key is not None and not np.isnan(gap_closed(results, key))}
  write_whole(folder / "report.json", json.dumps({
      "settings": run_settings,
      "versions": {"python": platform.python_version(),
                   **{name: metadata.version(name) for name in packages}},
      "results": results,
      "gap_closed": gaps,
  }, indent=2) + "\n")
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["figure", *results, "gap_closed"])
  for key in dict.fromkeys(key for row in results.values() for key in row):
    writer.writerow([key, *(row.get(key, "") for row in results.values()),
                     gaps.get(key, "")])
  write_whole(folder / "report.csv", text.getvalue())


def picture(
    teacher: keras.Model,
    files: Mapping[str, bytes],
    wcam: kap.WCAM,
    scenes: Scenes,
    rows: int = 6,
) -> bytes:
  """Draws scenes with the maps of the teacher and of every file.

  The function sorts the scenes by their cosine to the teacher, averaged over
  the files. It draws scenes at even steps from near the worst to near the best.

  Args:
    teacher: the float model.
    files: .tflite files by name.
    wcam: names the layer and the method.
    scenes: scenes that no model has seen.
    rows: the number of scenes.

  Returns:
    A PNG file's bytes.
  """
  which, classes = evaluation.mask_pairs(scenes.label_maps, CLASS_IDS)
  images = scenes.images[which]
  maps = {"teacher (float)": attribution.grad_cam(
      teacher, images, classes, wcam.layers[0])}
  cosines = {}
  for name, content in files.items():
    title = f"{name} (int8 file)"
    maps[title], _ = kap.export.Interpreter(content).explain(images, classes)
    cosines[title] = evaluation.agreement(
        maps["teacher (float)"], maps[title])["cosine"]
  quality = np.mean([*cosines.values()], axis=0)
  order = np.argsort(quality)  # NaN comes last: no teacher map.
  order = order[:np.isfinite(quality).sum()]
  chosen = order[(np.linspace(0.03, 0.97, rows) * len(order)).astype(int)]
  return map_grid(
      images[chosen],
      scenes.label_maps[which][chosen] == CLASS_IDS[classes][chosen][
          :, None, None],
      {title: values[chosen] for title, values in maps.items()},
      [f"digit {digit}" for digit in classes[chosen]],
      "Where each model looks for the digit (outlined), and how far the "
      "compressed maps agree with the teacher's",
      {title: [f"cosine {value:.2f}" for value in values[chosen]]
       for title, values in cosines.items()})
