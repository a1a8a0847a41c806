"""What each device holds of a training state, as recorded; and that every partition rule counts."""

import json

import flax.linen as nn
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rml.errors import UserError
from rml.training.mesh import DEFAULT_RULES, MESH_AXES, place
from tests.system import placement

GOLDEN = json.loads(placement.GOLDEN.read_text())
# Together they have every axis.
SOME = (
    "configs/contrastive/simclr_imagenet2012_resnet50.py",
    "configs/hydra/hydra_digits.py",
    "configs/pods/simclr_imagenet2012_vit_b.py",
    "configs/retrieval/contriever_pydocs_random.py",
    *placement.MODELS,
)
# Matrices that are factorised, and whole runs side by side, are small and lie whole.
WHOLE = ("configs/kernels/", "configs/contrastive/ablation_", "configs/merging/bed.py")


def test_every_config_with_a_mesh_is_recorded():
    assert sorted(placement.names()) == sorted(GOLDEN.keys() - {"activations"})


@pytest.mark.slow
def test_bytes_of_a_device_are_those_recorded():
    assert {name: placement.measure(name) for name in placement.names()} == {
        name: row for name, row in GOLDEN.items() if name != "activations"
    }
    assert placement.activations() == GOLDEN["activations"]


def test_a_device_holds_little_more_than_its_share():
    for name, row in GOLDEN.items():
        if name == "activations" or name.startswith(WHOLE):
            continue
        for mesh in ("fsdp=4", "model=4"):
            assert row[mesh] < 1.04 * row["whole"] / 4, (name, mesh)
        # Of both mesh axes one splits a convolution.
        assert row["fsdp=2, model=4"] < 0.52 * row["whole"], name


@pytest.mark.slow
@pytest.mark.parametrize("rule", DEFAULT_RULES, ids=str)
def test_every_rule_counts(rule):
    rules = [other for other in DEFAULT_RULES if other != rule]
    if placement.activations(rules) != GOLDEN["activations"]:
        return
    try:
        found = {name: placement.measure(name, rules) for name in SOME}
    except UserError as error:
        assert f"{rule[0]!r}" in str(error)  # noqa: PT017 - an axis without a rule
    else:
        assert found != {name: GOLDEN[name] for name in SOME}


@pytest.mark.slow
def test_activations_have_no_axis_without_a_rule(monkeypatch):
    constrain, names = nn.with_logical_constraint, set()

    def noted(x, axes, *args, **options):
        names.update(axes)
        return constrain(x, axes, *args, **options)

    monkeypatch.setattr(nn, "with_logical_constraint", noted)
    for name in SOME:
        placement.state.__wrapped__(name)
    assert {"batch", "embed", "mlp", "heads", "channels_out"} <= names
    assert names <= {None, *(name for name, _ in DEFAULT_RULES)}


def boxed(*axes, shape=(6, 8)):
    return {"params": {"out": nn.LogicallyPartitioned(jnp.zeros(shape), axes)}}


def spec(*axes, shape=(6, 8), mesh=(1, 4)):
    mesh = AbstractMesh((1, 1, *mesh), MESH_AXES)
    return place(boxed(*axes, shape=shape), mesh)[0]["params"]["out"].spec


def test_an_axis_without_a_rule_is_an_error_that_names_it():
    mesh = AbstractMesh((1, 1, 1, 1), MESH_AXES)
    with pytest.raises(UserError, match="logical axis of params/out 'channel'; did you mean"):
        place(boxed("embed", "channel"), mesh)
    assert spec(None, None) == PartitionSpec(None, None)


def test_what_an_axis_does_not_divide_another_takes():
    assert spec("classes", "embed") == PartitionSpec(None, "model")  # 6 classes on 4 devices
    assert spec("classes", "embed", mesh=(2, 4)) == PartitionSpec(None, ("model", "fsdp"))
    assert spec("classes", None) == PartitionSpec(None, None)
    assert spec("layers", "vocab", shape=(4, 6)) == PartitionSpec(None, None)


def test_rules_that_divide_nothing_do_not_split_activations_either():
    mesh = AbstractMesh((1, 1, 1, 4), MESH_AXES)
    assert ("classes", "model") not in place(boxed("classes", "embed"), mesh)[1]
    assert ("classes", "model") in place(boxed("classes", "embed", shape=(8, 8)), mesh)[1]
    assert ("classes", "model") in place(boxed("embed", "mlp"), mesh)[1]
