"""What XLA makes of the ring on a TPU: compiled for eight chips that are not there.

Needs the `tpu` extra (libtpu); the compiler runs on any machine.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rml.contrastive.clip import clip_loss

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
mesh = Mesh(np.array(chips), ("data",))
loss = jax.shard_map(
    lambda a, b: clip_loss(a, b, log_scale=1.0, axis_name="data"),
    mesh=mesh, in_specs=P("data"), out_specs=P())
x = jax.ShapeDtypeStruct((8 * 4096, 256), jnp.float32, sharding=NamedSharding(mesh, P("data")))
print(jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile().as_text())
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the tpu extra")
def test_transfers_of_the_ring_hide_behind_its_matrix_products():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": ":".join(sys.path)},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "all-gather" not in done.stdout
    # A scheduled program lists its instructions in order. In the loop over the ring everything
    # is sent before the conditional that holds the matrix products, and awaited after it.
    pattern = r"(collective-permute-start|collective-permute-done|conditional)\("
    bodies = [re.findall(pattern, part) for part in re.split(r"\n}\n", done.stdout)]
    loops = [body for body in bodies if "conditional" in body and len(body) > 1]
    assert len(loops) == 2  # values, gradients
    for body in loops:
        middle = body.index("conditional")
        assert set(body[:middle]) == {"collective-permute-start"}
        assert set(body[middle + 1 :]) == {"collective-permute-done"}
        assert len(body) % 2 == 1
