"""What a sweep tries, and how it names the best."""

import pytest
from ml_collections import ConfigDict

from rml.errors import UserError
from tpu import sweep
from tpu.compile import DoesNotFit


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


def test_nothing_fits(config, compiler, monkeypatch):
    def refuse(config, devices):
        raise DoesNotFit("too large")

    monkeypatch.setattr(sweep, "compile_step", refuse)
    with pytest.raises(UserError, match="nothing of 12 candidates fits v5e:2x2"):
        sweep.sweep(config, DEVICES, "v5e:2x2", write=lambda line: None)
