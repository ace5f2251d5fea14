"""What pytest checks around every test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def shared_nets_stay_as_they_are():
  """Fails the test that changes a net that others use, not those others."""
  yield
  helpers = sys.modules.get("tests.export_helpers")
  assert helpers is None or not helpers.changed_nets()
