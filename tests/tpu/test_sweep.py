"""What a sweep tries, and how it names the best."""

import math

import pytest
from ml_collections import ConfigDict

from rml.errors import UserError
from tpu import sweep
from tpu.compile import DoesNotFit
from tpu.report import rates


@pytest.fixture
def config():
    return ConfigDict(
        dict(
            train=dict(batch_size=64),
            model=dict(remat=True),
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
        )
    )


def test_candidates(config):
    found = [
        (c.mesh.replica, c.mesh.fsdp, c.train.batch_size, c.model.remat)
        for c in sweep.candidates(config, 32, 2)
    ]
    sizes, splits = (32, 64, 128), (1, 8, 16)  # parameters never split over slices
    assert set(found) == {(2, f, b, r) for f in splits for b in sizes for r in (False, True)}
    assert len(found) == 18
    assert config.train.batch_size == 64
    del config.model.remat
    assert len(list(sweep.candidates(config, 4, 1))) == 2 * 3


@pytest.fixture
def compiler(monkeypatch):
    """In the place of the compiler: without recomputation nothing fits, larger is faster."""

    def compile_step(config, devices):
        if not config.model.remat:
            raise DoesNotFit("too large")
        return config

    def examine(config, tried, topology):
        mesh = dict(
            replica=1, data=len(DEVICES) // config.mesh.fsdp, fsdp=config.mesh.fsdp, model=1
        )
        return {
            "mesh": mesh,
            "batch_size": config.train.batch_size,
            "examples_per_second": config.train.batch_size / config.mesh.fsdp,
            "seconds": {"estimate": 1.0},
            "memory": {"total": 2.0**30},
            "chip": {"hbm": 2.0**34},
            "bound": "memory",
        }

    monkeypatch.setattr(sweep, "compile_step", compile_step)
    monkeypatch.setattr(sweep, "examine", examine)


DEVICES = [object()] * 4


def test_best_is_a_config_override(config, compiler):
    lines = []
    found = sweep.sweep(config, DEVICES, "v5e:2x2", write=lines.append)
    assert found["override"] == (
        "--config.mesh.replica=1 --config.mesh.data=4 --config.mesh.fsdp=1 "
        "--config.mesh.model=1 --config.train.batch_size=128 --config.model.remat=True"
    )
    assert len(found["rows"]) == len(lines) - 1 == 12
    assert sum("too large" in line for line in lines) == 6


@pytest.fixture
def unknown(compiler, monkeypatch):
    """Makes the time of a step unknown where the config splits parameters in one of these ways."""
    inner, splits = sweep.examine, set()

    def examine(config, tried, topology):
        report = inner(config, tried, topology)
        if config.mesh.fsdp not in splits:
            return report
        step = {"seconds": {"estimate": math.inf}}
        return report | step | rates(math.inf, floor=1.0, examples=report["batch_size"])

    monkeypatch.setattr(sweep, "examine", examine)
    return splits


def test_no_best_is_named_where_no_time_is_known(config, unknown):
    unknown |= {1, 4}
    lines = []
    found = sweep.sweep(config, DEVICES, "v4:2x2x1", write=lines.append)
    assert lines[-1] == "dcn of v4 is not published: no best is named"
    assert not any("best:" in line for line in lines)
    assert sum("unknown examples/s, step unknown" in line for line in lines) == 6
    assert (found["best"], found["override"], len(found["rows"])) == (None, None, 12)


def test_a_candidate_whose_time_is_unknown_is_not_the_best(config, unknown):
    unknown |= {1}  # which are tried first
    lines = []
    found = sweep.sweep(config, DEVICES, "v4:2x2x1", write=lines.append)
    assert found["best"]["examples_per_second"] == 128 / 4
    assert "--config.mesh.fsdp=4 " in found["override"]
    assert lines[-1] == f"best: {found['override']}"


def test_rates_follow_from_a_steps_time_or_are_unknown():
    assert rates(0.5, floor=0.125, examples=64) == {
        "estimate_over_floor": 4.0, "share_of_peak": 0.25, "examples_per_second": 128.0
    }  # fmt: skip
    assert all(map(math.isnan, rates(math.inf, floor=0.125, examples=64).values()))


def test_nothing_fits(config, compiler, monkeypatch):
    def refuse(config, devices):
        raise DoesNotFit("too large")

    monkeypatch.setattr(sweep, "compile_step", refuse)
    with pytest.raises(UserError, match="nothing of 12 candidates fits v5e:2x2"):
        sweep.sweep(config, DEVICES, "v5e:2x2", write=lambda line: None)
