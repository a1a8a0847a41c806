"""Language models that nothing was trained for, for the tests of recipes that read with them."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rml.models import Llama


def drawn(module, seed=0):
    """Variables of a module, drawn by NumPy: compiling many draws is slow.

    Scales of norms are 1. Projections are so large that attention differs between keys.
    """
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(0, 0.25, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_decoder():
    """What `pretrained.load` gives of a decoder of four layers, without a tokenizer."""
    module = Llama(
        vocabulary=32, width=16, depth=4, heads=4, kv_heads=2, head_width=8, mlp=16, tied=True
    )
    return SimpleNamespace(module=module, variables=drawn(module), tokenizer=None)
