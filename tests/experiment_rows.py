"""Made-up results of an experiment that never ran, for tests of its tables."""

import numpy as np

ARMS = {  # How much of the loss each keeps; nothing here was measured.
    "plain": 0.0, "distillation": 0.45, "ewa": 0.3, "e2kd": 0.35,
    "catkd": 0.25, "swa": 0.7, "swa_stochastic": 0.65,
    "swa_distillation": 0.8, "agreement": 0.75}
CLASSES = ("bird", "cat", "cow", "dog", "horse", "sheep")
LOST = {0.8: 0.25, 0.9: 0.45, 0.95: 0.7}


def row(arm="plain", seed=1, compression="prune", strength=0.9, **figures):
  """A row with only what every row must have."""
  if arm in ("teacher", "centre_prior", "fine_tune"):
    compression, strength = "none", 0
  return {"experiment": "made_up", "compression": compression,
          "strength": strength, "arm": arm, "seed": seed, **figures}


def sweep(*, arms=tuple(ARMS), strengths=tuple(LOST), seeds=(1, 2, 3),
          compressions=("prune",)):
  """Rows of a whole made-up sweep, uncompressed ones first."""
  rng = np.random.default_rng(7)
  rows = []
  for seed in seeds:
    rows += [row("teacher", seed, **_figures(0.0, 412_000, rng)),
             row("centre_prior", seed, roc_auc=0.61 + 0.002 * seed,
                 pointing=0.36, cosine_mean=0.62),
             row("fine_tune", seed, **_figures(0.02, 412_000, rng))]
    for compression in compressions:
      for strength in strengths:
        for arm in arms:
          lost = LOST[strength] * (1 - ARMS[arm]) * rng.uniform(0.9, 1.1)
          rows.append(row(arm, seed, compression, strength, **_figures(
              lost, 412_000 * (1.15 - strength), rng)))
  return rows


def _figures(lost, size, rng):
  def one(best, worst, noise=0.006):
    return float(best - lost * (best - worst) + rng.normal(0, noise))

  cosine = min(1.0, one(1, 0.5)) if lost else 1.0
  return {
      "map": one(0.86, 0.7), "accuracy": one(0.91, 0.82), "f1": one(0.8, 0.65),
      "same_top_class": min(1.0, one(1, 0.7)), "cosine_mean": cosine,
      "cosine_p5": cosine - 0.2 * lost, "spearman_mean": cosine - 0.05 * lost,
      "roc_auc": one(0.78, 0.6), "pointing": one(0.55, 0.3, 0.02),
      "gradient_cosine_mean": one(1, 0.3), "gradient_spearman_mean": one(1, .2),
      "occlusion_cosine_mean": one(1, 0.4), "occlusion_roc_auc": one(0.74, 0.6),
      "dead": max(0.0, 0.03 * lost), "sparsity": 1 - size / 474_000,
      "parameters": 218_000, "macs": 7_490_000, "bytes": size * 1.4,
      "bytes_gzipped": size + rng.normal(0, 900), "float_cosine_mean": cosine,
      "float_roc_auc": one(0.78, 0.6), "seconds": float(rng.uniform(55, 70)),
      "steps": 600, "batch_size": 32, "digest": "0123456789ab",
      "settings": {"weight": "auto"}, "versions": {"made_up": "1.0"},
      "per_class": {name: {"ap": one(0.86, 0.5, 0.03),
                           "cosine_mean": min(1.0, one(1, 0.4, 0.02)),
                           "roc_auc": one(0.78, 0.5, 0.02)}
                    for name in CLASSES}}
