"""WORKSPACE.md says what is true: its table against the tree."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

from experiments.claims import measured, table, write_cell
from rml.training import Claim

ROOT = Path(__file__).parents[2]
ROWS = list(table((ROOT / "WORKSPACE.md").read_text()))
WORKING = [row for row in ROWS if row.works]


def test_keys_are_unique():
    keys = [row.key for row in ROWS]
    assert len(keys) == len(set(keys)) >= 94


def test_unbuilt_rows_say_so_and_promise_nothing():
    for row in ROWS:
        if not row.works:
            assert (row.function, row.config, row.test, row.measured) == ("not built", "", "", "")


@pytest.mark.parametrize("row", WORKING, ids=lambda row: row.key)
def test_working_rows_name_what_exists(row):
    module, _, name = row.function.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    config = runpy.run_path(str(ROOT / row.config))["get_config"]()
    experiment = importlib.import_module(f"experiments.{config.experiment}")
    assert experiment.CLAIMS
    assert "def test_" in (ROOT / row.test).read_text()
    assert row.room in row.function


def test_every_system_has_its_row():
    systems = ROOT.parent / "shared" / "systems.md"
    if not systems.exists():
        pytest.skip("the list of systems is not beside the repository")
    keys = set(re.findall(r"^\| (\w+) \|", systems.read_text(), re.M)) - {"key"}
    assert len(keys) == 93
    assert keys <= {row.key for row in ROWS}


def test_the_worked_example_is_the_function_it_says():
    """The newcomer's function in WORKSPACE.md runs as printed."""
    import jax
    import numpy as np

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "WORKSPACE.md").read_text(), re.S)
    block = next(b for b in blocks if "def align_uniform" in b)
    scope: dict = {}
    exec(re.sub(r"^   ", "", block, flags=re.M), scope)
    a, b = jax.random.normal(jax.random.key(0), (2, 6, 3))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in np.asarray([a, b], np.float64)]
    squared = ((unit[0] - unit[1]) ** 2).sum(1).mean()
    logs = []
    for x in unit:
        distances = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(6, 1)]
        logs.append(np.log(np.exp(-2 * distances).mean()))
    expected = squared + 0.5 * np.mean(logs)
    assert float(scope["align_uniform"](a, b, weight=0.5)) == pytest.approx(expected, rel=1e-4)


CLAIM = Claim("m is above 0.02", "m", ">=", 0.02, "a paper")


def test_measured_cell_gives_mean_spread_and_verdict(tmp_path):
    summaries = [{"metrics": {"m": v}, "seconds": 10.0} for v in (0.01, 0.02, 0.06)]
    text = measured([CLAIM], summaries)
    assert text == "m 0.03 ± 0.026 (>= 0.02: holds); 3 seeds, 10 s each"
    low = measured([CLAIM], [{"metrics": {"m": 0.01}, "seconds": 4.0}])
    assert low == "m 0.01 (>= 0.02: **not reproduced**); 1 seed, 4 s each"

    file = tmp_path / "WORKSPACE.md"
    file.write_text((ROOT / "WORKSPACE.md").read_text())
    row = next(row for row in ROWS if row.works)
    write_cell(file, row, text)
    again = next(r for r in table(file.read_text()) if r.key == row.key)
    assert again == row._replace(measured=text)
    changed = [a for a, b in zip(file.read_text().splitlines(),
                                 (ROOT / "WORKSPACE.md").read_text().splitlines(), strict=True)
               if a != b]  # fmt: skip
    assert len(changed) <= 1
