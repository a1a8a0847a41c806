"""A change of structure changes no number: first steps and short runs against recorded ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.system import two_steps

GOLDEN = json.loads(two_steps.GOLDEN.read_text())
# Every family of the pillars has some; `python -m tests.system.two_steps` has all.
CHEAP = (
    "configs/attention/random_features.py",
    "configs/contrastive/moco_v2_mnist5k.py",
    "configs/contrastive/moco_v3_mnist5k.py",
    "configs/contrastive/barlow_twins_mnist5k.py",
    "configs/contrastive/simclr_mnist5k.py",
    "configs/contrastive/supcon_mnist5k.py",
    "configs/fewshot/base_mnist5k.py",
    "configs/fewshot/clustering_mnist5k.py",
    "configs/hydra/hydra_mnist5k.py",
    "configs/kernels/classification_mnist5k.py",
    "configs/kernels/learning_friedman.py",
    "configs/retrieval/contriever_pydocs_random.py",
)
MEASURE = """
import contextlib, json, sys
from collections.abc import Mapping
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

Mapping.register(ConfigDict)
with install_import_hook("rml", "beartype.beartype"):
    from tests.system import two_steps

    for path in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = two_steps.measure(path.strip())
        print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def measure() -> Iterator[Callable[[str], dict[str, str]]]:
    """Numbers of a config; by a process that compiles as the one that recorded them.

    Where another processor recorded all of them no bits are compared, and the tests' own process,
    which compiles quickly, is good enough.
    """
    if two_steps.machine() not in {GOLDEN[path]["machine"] for path in CHEAP}:
        yield two_steps.measure
        return
    server = subprocess.Popen(
        [sys.executable, "-c", MEASURE], cwd=two_steps.ROOT, text=True,
        env=os.environ | {"XLA_FLAGS": two_steps.FLAGS},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(path: str) -> dict[str, str]:
        print(path, file=server.stdin, flush=True)
        line = server.stdout.readline()
        assert line, "it ended with an error"
        return json.loads(line)

    yield run
    server.stdin.close()
    server.wait(timeout=60)
    server.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", CHEAP)
def test_numbers_are_those_recorded(measure, path):
    own = GOLDEN[path]
    if own["python"] != two_steps.python(path):
        pytest.skip(f"recorded on docstrings of Python {own['python']}")
    same = own["machine"] == two_steps.machine()
    assert own["numbers"]
    assert not two_steps.differences(own["numbers"], measure(path), bits=same)


def test_a_changed_bit_is_seen():
    assert two_steps.differences({"a": "0x1.0p+0"}, {"a": "0x1.0000000000001p+0"}) == ["a"]
    assert two_steps.differences({"a": "0x1.0p+0"}, {}) == ["a"]
    assert not two_steps.differences({"a": "0x1.0p+0"}, {"a": "0x1.0p+0"})


def test_another_processor_may_round_and_no_more():
    def differ(one, other):
        return two_steps.differences({"a": one.hex()}, {"a": other.hex()}, bits=False) == ["a"]

    assert not differ(1.0, 1.0015)
    assert differ(1.0, 1.003)
    assert not differ(0.0, 1e-6)
    assert differ(0.0, 1e-3)
    assert not differ(float("nan"), float("nan"))
    assert two_steps.differences({"a": "0x1.0p+0"}, {}, bits=False) == ["a"]


def test_all_that_have_numbers_are_recorded():
    assert set(CHEAP) <= set(GOLDEN)
    assert set(two_steps.configs()) == set(GOLDEN)
