"""The variants of an experiment: further goals of a student beside its task.

Every variant is a list of callbacks for the same fit. A variant with a name in
"_bn" starts from the teacher after `kap.recalibrate_batch_norm`.
"""

from collections.abc import Mapping, Sequence

import keras_attr_preserve as kap
from keras_attr_preserve.compat import keras

__all__ = [
  "ARMS", "ARM_SETTINGS", "CALLBACK_ARMS", "REFERENCES", "arm_callbacks",
  "recalibrates",
]

REFERENCES = ("teacher", "centre_prior")
"""Reference rows beside the variants."""

_MAPS = ("layers", "target")
_RECALIBRATED = "_bn"
ARM_SETTINGS = {
    "plain": (),
    "distillation": ("alpha",),
    "ewa": ("layers", "weight"),
    "e2kd": ("layers", "e2kd_weight"),
    "catkd": ("layers", "catkd_weight"),
    "swa": (*_MAPS, "weight"),
    "swa_stochastic": (*_MAPS, "weight"),
    "swa_distillation": (*_MAPS, "weight", "alpha"),
    "agreement": (*_MAPS, "agreement", "alpha"),
    "hints": ("hint_weight", "alpha"),
    "swa_hints": (*_MAPS, "weight", "hint_weight"),
    "swa_hints_distillation": (*_MAPS, "weight", "hint_weight", "alpha"),
    "fine_tune": (),
}
"""The settings of each variant; it uses no others."""
ARM_SETTINGS |= {
    arm + _RECALIBRATED: ARM_SETTINGS[arm]
    for arm in ("plain", "distillation", "e2kd", "swa_hints",
                "swa_hints_distillation")}

CALLBACK_ARMS = tuple(arm for arm in ARM_SETTINGS if arm != "fine_tune")
ARMS = ("fine_tune", *CALLBACK_ARMS)
"""All variants; "fine_tune" trains on without compression."""

DROP_RATE = 0.3


def recalibrates(arm: str) -> bool:
  """Checks whether a variant starts from recalibrated normalizations."""
  return arm in ARMS and arm.endswith(_RECALIBRATED)


def arm_callbacks(
    arm: str,
    teacher: keras.Model,
    *,
    multi_label: bool,
    layers: Sequence[str] = (),
    target: str = "teacher",
    weight: float | str = "auto",
    hint_weight: float | str = "auto",
    agreement: float = 0.95,
    alpha: float = 0.9,
    e2kd_weight: float = 1.0,
    catkd_weight: float = 4.0,
    channels: Mapping[str, Sequence[int]] | None = None,
) -> list[keras.callbacks.Callback]:
  """Makes the callbacks of a variant.

  Logit distillation is by Joseph et al. 2020 and Hinton et al. 2015, e2KD by
  Parchami-Araghi et al. 2024. CAT-KD is by Guo et al. 2023, hints beside scores
  by Romero et al. 2015. Attention transfer uses the map of "ewa".

  Args:
    arm: one of `ARMS`.
    teacher: the model before compression.
    multi_label: whether an image may show several classes.
    layers: the layers whose maps are preserved; rivals of one layer take the
      last.
    target: the class whose map "swa" preserves; see `WCAM`.
    weight: the weight of the maps in the loss; see `WCAM`.
    hint_weight: the weight of the features in the loss; see `Hints`.
    agreement: the agreement that the variant "agreement" keeps.
    alpha: the share of the teacher's scores in the loss, if it has them.
    e2kd_weight: the weight of e2KD's maps; its paper tunes it for each data
      set.
    catkd_weight: the weight of CAT-KD's maps; its paper tunes it too.
    channels: the teacher's channels that a pruned student has, by layer; see
      `Hints`.

  Returns:
    New callbacks at every call.

  Raises:
    ValueError: the variant is unknown.
  """
  if arm in ARMS:
    arm = arm.removesuffix(_RECALIBRATED)
  kind = "sigmoid" if multi_label else "softmax"
  scores = kap.Distillation(kind=kind, alpha=alpha)
  features = kap.Hints(weight=hint_weight, channels=channels)

  def hold(distillation=None, hints=None, **settings):
    wcam = kap.WCAM([*layers], **{"target": target, **settings})
    return [kap.PreserveAttribution(
        teacher, wcam, distillation=distillation, hints=hints)]

  if arm in ("fine_tune", "plain"):
    return []
  if arm == "distillation":
    return [kap.PreserveAttribution(teacher, None, distillation=scores)]
  if arm == "ewa":
    return hold(method="ewa", weight=weight, target="teacher")
  if arm == "e2kd":
    return [kap.PreserveAttribution(
        teacher, kap.objectives.E2KD(layers[-1], weight=e2kd_weight),
        distillation=kap.Distillation(kind=kind, alpha=1.0))]
  if arm == "catkd":
    return [kap.PreserveAttribution(
        teacher, kap.objectives.CATKD(layers[-1], weight=catkd_weight))]
  if arm == "swa":
    return hold(weight=weight)
  if arm == "swa_stochastic":
    return hold(weight=weight, drop_rate=DROP_RATE)
  if arm == "swa_distillation":
    return hold(scores, weight=weight)
  if arm == "agreement":
    return hold(scores, agreement=agreement)
  if arm == "hints":
    return [kap.PreserveAttribution(
        teacher, None, distillation=scores, hints=features)]
  if arm in ("swa_hints", "swa_hints_distillation"):
    return hold(scores if arm.endswith("distillation") else None, features,
                weight=weight)
  raise ValueError(f"arm must be one of {[*ARMS]}; got {arm!r}.")
