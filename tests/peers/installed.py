"""Which peers are here, and what Keras they see."""

import importlib.util
import os
import unittest

__all__ = ["need"]


def need(name: str, version: str, *, tf_keras: bool) -> None:
  """Skips the module that asks, as a whole, where a peer cannot run.

  Args:
    name: of the peer's package.
    version: that the tests were written against.
    tf_keras: whether the peer goes by `tf.keras`, which must then be tf_keras:
      it is decided by the environment before TensorFlow is first used.

  Raises:
    unittest.SkipTest: the peer is not installed, or would see another Keras.
  """
  if importlib.util.find_spec(name) is None:
    raise unittest.SkipTest(f"{name} is not installed (checked on {version})")
  if tf_keras and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise unittest.SkipTest(f"{name} needs TF_USE_LEGACY_KERAS=1 to run here")
