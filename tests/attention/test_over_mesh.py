"""A decoder whose text is spread over devices, beside one device."""

import pytest

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from rml.attention import attend_over_mesh, attention_of
from rml.models import Llama
from rml.training import make_mesh, split_tokens, use_mesh
from rml.training.mesh import batch_sharding

mesh = make_mesh({"data": 4})
module = Llama(vocabulary=64, width=32, depth=2, heads=4, kv_heads=2, mlp=48, positions=512,
               attention=attention_of(attend_over_mesh))
rng = np.random.default_rng(0)
tokens = jnp.asarray(rng.integers(0, 64, 512), jnp.int32)
mask = jnp.asarray(np.arange(512) >= 12)
variables = module.init(jax.random.key(0), tokens[None, :4])

def loss(variables, tokens, mask):
    hidden = module.apply(variables, tokens[None], mask[None])
    logits = module.apply(variables, hidden, method="logits")[0]
    right = jnp.take_along_axis(logits, jnp.roll(tokens, -1)[:, None], -1)[:, 0]
    nats = jax.nn.logsumexp(logits, -1) - right
    return jnp.where(mask, nats, 0).sum()

step = jax.jit(jax.value_and_grad(loss))
expected, gradient = step(variables, tokens, mask)

def spread(variables, tokens, mask):
    with split_tokens():
        return jax.value_and_grad(loss)(variables, tokens, mask)

with use_mesh(mesh):
    given = (variables, *jax.device_put((tokens, mask), batch_sharding(mesh)))
    compiled = jax.jit(spread).lower(*given).compile()
    found, gradients = compiled(*given)
error = lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max())
worst = jax.tree.map(error, gradient, gradients)
text = compiled.as_text()
alone = step.lower(variables, tokens, mask).compile()
print(json.dumps({
    "loss": abs(float(found - expected)) / float(expected), "gradient": max(jax.tree.leaves(worst)),
    "permutes": text.count("collective-permute("), "gathers": text.count("all-gather("),
    "bytes": [one.memory_analysis().temp_size_in_bytes for one in (compiled, alone)]}))
"""


@pytest.mark.slow
def test_a_text_over_four_devices_has_the_loss_and_gradient_of_one(forked):
    found = forked(PROGRAM, devices=4)
    assert found["loss"] < 1e-6
    assert found["gradient"] < 1e-5
    assert found["permutes"] > 0
    spread, alone = found["bytes"]
    assert spread < 0.5 * alone
