"""Programs compiled for eight virtual devices, once for all tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
def shaped(*shape, spec=P()):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

def products(x, w):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

def nested(x, w):
    inner = lambda x, _: (jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0], None)
    return jax.lax.scan(inner, x, None, length=3)[0]

def summed(x):
    return jnp.sum(x, 0)

def gathered(x):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))

def ring(x):
    def body(x, _):
        return jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]), None
    body_all = lambda x: jax.lax.scan(body, x, None, length=4)[0]
    return jax.shard_map(body_all, mesh=mesh, in_specs=P("b"), out_specs=P("b"))(x)

def convolved(x, k):
    return jax.lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1)))

def chosen(x, w):
    small = lambda x: x @ w
    return jax.lax.cond(x[0, 0] > 0, lambda x: products(x, jnp.stack([w] * 4)), small, x)

texts = {}
for name, function, args in [
    ("products", products, (shaped(8, 16), shaped(7, 16, 16))),
    ("nested", nested, (shaped(8, 16), shaped(16, 16))),
    ("summed", summed, (shaped(64, 32, spec=P(("a", "b"))),)),
    ("gathered", gathered, (shaped(64, 32, spec=P("b")),)),
    ("ring", ring, (shaped(64, 32, spec=P("b")),)),
    ("convolved", convolved, (shaped(2, 3, 9, 9), shaped(5, 3, 3, 3))),
    ("chosen", chosen, (shaped(8, 16), shaped(16, 16))),
]:
    texts[name] = jax.jit(function).lower(*args).compile().as_text()
json.dump(texts, sys.stdout)
"""


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Texts of small programs compiled for a 2 x 4 mesh of virtual devices."""
    flag = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)
