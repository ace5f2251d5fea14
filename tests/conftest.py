"""What pytest checks around every test."""

import gc
import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def garbage_is_looked_for_in_what_is_new():
  """Spares TFLite's converter, which looks for garbage whenever it is called.

  To look through all that TensorFlow imports takes longer than to convert a
  tiny net.
  """
  gc.collect()
  gc.freeze()


@pytest.fixture(autouse=True)
def shared_nets_stay_as_they_are():
  """Fails the test that changes a net that others use, not those others."""
  yield
  helpers = sys.modules.get("tests.export_helpers")
  assert helpers is None or not helpers.changed_nets()
