"""What XLA makes of the ring on a TPU: compiled for eight chips that are not there.

Needs the `tpu` extra (libtpu); the compiler runs on any machine.
"""

import re

COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rml.losses.clip import clip_loss

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
mesh = Mesh(np.array(chips), ("data",))
loss = jax.shard_map(
    lambda a, b: clip_loss(a, b, log_scale=1.0, axis_name="data"),
    mesh=mesh, in_specs=P("data"), out_specs=P())
x = jax.ShapeDtypeStruct((8 * 4096, 256), jnp.float32, sharding=NamedSharding(mesh, P("data")))
print(jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile().as_text())
"""


def test_transfers_of_the_ring_hide_behind_its_matrix_products(compile_for_tpu):
    text = compile_for_tpu(COMPILE)
    assert "all-gather" not in text
    # A scheduled program lists its instructions in order. In the loop over the ring everything
    # is sent before the conditional that holds the matrix products, and awaited after it.
    pattern = r"(collective-permute-start|collective-permute-done|conditional)\("
    bodies = [re.findall(pattern, part) for part in re.split(r"\n}\n", text)]
    loops = [body for body in bodies if "conditional" in body and len(body) > 1]
    assert len(loops) == 2  # values, gradients
    for body in loops:
        middle = body.index("conditional")
        assert set(body[:middle]) == {"collective-permute-start"}
        assert set(body[middle + 1 :]) == {"collective-permute-done"}
        assert len(body) % 2 == 1
