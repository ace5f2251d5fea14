"""Tests of docs/results: a page shows the results of its command."""

import re
import shlex

from absl.testing import absltest, parameterized

from examples.experiment.runs.grids import read_grid
from examples.experiment.runs.results_file import current_rows, read_rows
from examples.experiment.runs.variants import ARMS
from tests.places import ROOT

PLACE = ROOT / "docs" / "results"
PAGES = sorted(
    path.stem for path in PLACE.glob("*.md") if path.stem != "README")
COMMAND = re.compile(r"^python -m examples\.sweep .*$", re.MULTILINE)


def flags_of(arguments: list[str]) -> dict[str, list[str]]:
  """The flags of a command line and of the files it names, in order."""
  flags = {}
  for argument in arguments:
    name, _, value = argument.removeprefix("--").partition("=")
    if name == "flagfile":
      lines = (ROOT / value).read_text().splitlines()
      for key, values in flags_of(
          [line for line in lines if line.startswith("--")]).items():
        flags.setdefault(key, []).extend(values)
    else:
      flags.setdefault(name, []).append(value)
  return flags


class PagesTest(parameterized.TestCase):

  @parameterized.parameters(*PAGES)
  def test_a_page_shows_what_its_command_makes(self, name):
    page = (PLACE / f"{name}.md").read_text()
    commands = COMMAND.findall(page)
    self.assertLen(commands, 1)
    flags = flags_of(shlex.split(commands[0])[3:])
    self.assertEqual(flags["experiment"][-1], name)
    runs = set(read_grid(
        flags["grid"][-1], flags.get("arm", ARMS),
        [int(seed) for seed in flags.get("seed", (1, 2, 3))]))
    rows = current_rows(
        read_rows(PLACE / "rows" / name / "results.jsonl"))
    self.assertEqual({row["experiment"] for row in rows}, {name})
    reported = {(row["compression"], row["strength"], row["arm"], row["seed"])
                for row in rows
                if row["arm"] not in ("teacher", "centre_prior")}
    asked = {(run.compression, run.strength, run.arm, run.seed)
             for run in runs}
    self.assertEmpty(reported - asked)
    self.assertEqual(bool(asked - reported), "Not all has run" in page)


if __name__ == "__main__":
  absltest.main()
