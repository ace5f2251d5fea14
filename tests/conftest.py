"""What pytest checks around every test, and the groups of slow ones."""

import gc
import sys

import pytest

from tests.groups import GROUPS


def pytest_addoption(parser):
  parser.addoption(
      "--group", choices=tuple(GROUPS),
      help="run the slow tests of this group alone")


def pytest_collection_modifyitems(config, items):
  """Keeps the tests of the group asked for; each slow test has a group."""
  group = config.getoption("--group")
  selected, left_out = [], []
  for item in items:
    # The mark that stands nearest to the test.
    mark = item.get_closest_marker("slow")
    if mark is not None and mark.args[:1] not in {(name,) for name in GROUPS}:
      raise pytest.UsageError(
          f"{item.nodeid}: the mark slow takes the name of a group, "
          f"{', '.join(GROUPS)}; got {mark.args}.")
    belongs = group is None or (mark is not None and mark.args[0] == group)
    (selected if belongs else left_out).append(item)
  if left_out:
    config.hook.pytest_deselected(items=left_out)
    items[:] = selected


@pytest.fixture(autouse=True, scope="module")
def garbage_is_looked_for_in_what_is_new():
  """Spares TFLite's converter, which looks for garbage whenever it is called.

  A search through all of TensorFlow's imports takes longer than the conversion
  of a tiny model.
  """
  gc.collect()
  gc.freeze()


@pytest.fixture(autouse=True)
def shared_nets_stay_as_they_are():
  """Fails a test that changes a shared model, rather than later tests."""
  yield
  helpers = sys.modules.get("tests.export_helpers")
  assert helpers is None or not helpers.changed_nets()
