"""Meshes: the same step on one device and on eight, placed by rules from logical axis names."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rml.errors import UserError
from rml.training import make_mesh
from rml.training.mesh import BATCH_AXES, MESH_AXES, check_divisible

EIGHT = """
import json, sys
import jax
sys.path.insert(0, {here!r})
import conftest
from rml.training import CompiledTask, make_mesh

task = conftest.build_task()
result = {{}}
for shape in ({{"data": 1}}, {{"data": 8}}, {{"data": 2, "fsdp": 4}}, {{"data": 2, "model": 4}},
              {{"replica": 2, "data": 2, "fsdp": 2, "model": 1}}):
    devices = jax.devices()[:1] if shape == {{"data": 1}} else jax.devices()
    compiled = CompiledTask(task, make_mesh(shape, devices))
    state = compiled.init()
    losses = []
    for _, batch in zip(range(3), task.batches()):
        state, metrics = compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
        losses.append(float(metrics["loss"]))
    kernel = state.params["Dense_1"]["kernel"]
    moment = state.opt_state[0].mu["Dense_1"]["kernel"]
    result[str(shape)] = dict(
        losses=losses,
        shard=list(kernel.addressable_shards[0].data.shape),
        moment=list(moment.addressable_shards[0].data.shape),
    )
print(json.dumps(result))
"""


@pytest.mark.slow
def test_eight_devices_equal_one_and_hold_their_share(forked):
    result = forked(EIGHT.format(here=str(Path(__file__).parent)), devices=8)
    single, *several = result.values()
    assert single["losses"][2] < single["losses"][0]
    for other in several:
        assert other["losses"] == pytest.approx(single["losses"], rel=2e-5)
    # The 64 x 32 kernel: "embed" is split over fsdp, "mlp" over model; its moments likewise.
    shards = {key: value["shard"] for key, value in result.items()}
    assert list(shards.values()) == [[64, 32], [64, 32], [16, 32], [64, 8], [32, 32]]
    assert all(value["moment"] == value["shard"] for value in result.values())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"dat": 1}, "unknown mesh axis 'dat'; did you mean 'data'"),
        ({"data": 3}, "data=3.*does not divide the 1 devices"),
        ({"data": -1, "model": -1}, "at most one of -1"),
        ({"model": 0}, "sizes of at least 1"),
    ],
)
def test_wrong_meshes(shape, message):
    with pytest.raises(UserError, match=message):
        make_mesh(shape)


def test_a_batch_that_the_mesh_does_not_divide_is_named():
    mesh = jax.sharding.AbstractMesh((1, 3, 1, 1), MESH_AXES)
    with pytest.raises(
        UserError, match=r"\['x'\] of shape \(64, 64\).*must divide.* and 3 devices sh"
    ):
        check_divisible(
            {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32)},
            {"x": NamedSharding(mesh, PartitionSpec(BATCH_AXES))},
        )
