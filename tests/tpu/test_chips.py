"""The table of chips agrees with itself and with the vendor's figures of whole pods."""

import pytest

from rml.errors import UserError
from tpu.chips import CHIPS, GIB, accelerator_type, example, parse_topology

TPUS = [kind for kind in CHIPS if not CHIPS[kind].target]
GPUS = [kind for kind in CHIPS if CHIPS[kind].target]


@pytest.mark.parametrize("kind", TPUS)
def test_figures_are_of_one_order(kind):
    chip = CHIPS[kind]
    assert chip.source.startswith("https://docs.cloud.google.com/tpu/docs/")
    assert 100e12 < chip.flops < 5e15
    assert 16 * GIB <= chip.hbm <= 192 * GIB
    assert chip.dcn is None or chip.dcn < chip.ici < chip.hbm_bandwidth
    assert chip.ports == 2 * chip.dimensions
    assert parse_topology(example(kind)) == (kind, (4,) * chip.dimensions)


@pytest.mark.parametrize("kind", GPUS)
def test_a_gpus_figures_are_of_one_order(kind):
    chip = CHIPS[kind]
    assert chip.source == f"https://www.nvidia.com/en-us/data-center/{kind}/"
    assert 300e12 < chip.flops < 1e15
    rates = dict(chip.float32)
    # Matrix units halve their rate from bfloat16 to TF32; float32 is left to the others.
    assert chip.flops / rates["default"] == pytest.approx(2, rel=0.01)
    assert 10 < chip.flops / rates["highest"] < 20
    assert 2e12 < chip.hbm_bandwidth < 5e12
    assert chip.ici < chip.hbm_bandwidth
    assert f"device_memory_size: {int(chip.hbm)}" in chip.target
    assert f"memory_bandwidth: {int(chip.hbm_bandwidth)}" in chip.target
    assert [parse_topology(f"{kind}:{n}") for n in (1, 8)] == [(kind, (1,)), (kind, (8,))]
    with pytest.raises(UserError, match=f"{kind} is a GPU, expected a TPU's topology"):
        accelerator_type(f"{kind}:8")


@pytest.mark.parametrize(
    ("kind", "chips", "peak", "reduce"),
    # FLOP/s and all-reduce bandwidth of whole pods, from the same pages.
    [
        ("v5e", 256, 50.63e15, 51.2e12),
        ("v6e", 256, 234.9e15, 102.4e12),
        ("v4", 4096, 1.1e18, 1.1e15),
    ],
)
def test_a_pod_is_its_chips(kind, chips, peak, reduce):
    assert CHIPS[kind].flops * chips == pytest.approx(peak, rel=0.03)
    assert CHIPS[kind].ici * chips == pytest.approx(reduce, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5x:4x4", ("chip 'v5x'", "did you mean 'v5")),
        ("v5e:4x4x4", ("3 dimensions", "v5e has 2", "v5e:4x4")),
        ("v5p:4x4", ("2 dimensions", "v5p:4x4x4")),
        ("v5e", ("v5e:4x4",)),
        ("v5e:4x", ("v5e:4x4",)),
        ("v5e:0x4", ("v5e:4x4",)),
        ("v5e:3x3", ("'v5e:3x3'", "v5e:2x4", "v5e:16x16")),
        ("v6e:32x32", ("'v6e:32x32'", "v6e:16x16")),
        ("h100:3", ("'h100:3'", "h100:1, h100:2, h100:4, h100:8")),
        ("h100:2x4", ("2 dimensions", "h100:8")),
        ("h10:8", ("did you mean 'h100'",)),
        ("v5p:2x3x4", ("'v5p:2x3x4'", "v5p:2x2x4", "multiples of 4")),
    ],
)
def test_wrong_topologies_are_named(name, parts):
    with pytest.raises(UserError) as error:
        parse_topology(name)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_accelerator_types():
    names = {"v5e:16x16": "v5litepod-256", "v5p:8x8x8": "v5p-1024", "v6e:4x4": "v6e-16"}
    assert {name: accelerator_type(name) for name in names} == names
    assert accelerator_type("v4:2x2x2") == "v4-16"
    assert accelerator_type("v4:2x2x1") == "v4-8"
    with pytest.raises(UserError, match="Kubernetes"):
        accelerator_type("tpu7x:2x2x1")
