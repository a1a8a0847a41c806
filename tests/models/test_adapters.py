"""Adapters against products in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.models import apply_lora, init_lora

RNG = np.random.default_rng(0)
PARAMS = {
    "blocks": {"mlp": {"kernel": RNG.normal(size=(3, 6, 4)), "bias": RNG.normal(size=(3, 4))}},
    "out": {"kernel": RNG.normal(size=(5, 2, 4))},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def test_adapters_begin_at_nothing_and_add_their_product():
    lora = init_lora(jax.random.key(0), PARAMS, rank=2, within="kernel")
    left = lora["blocks"]["mlp"]["kernel"].left
    assert left.shape == (3, 6, 2)
    assert lora["out"]["kernel"].left.shape == (5, 2)  # [5, 2 4] is its squarest matrix
    assert lora["blocks"]["mlp"]["bias"] is None
    jax.tree.map(np.testing.assert_array_equal, apply_lora(PARAMS, lora), PARAMS)
    right = RNG.normal(size=(3, 2, 4)).astype(np.float32)
    lora["blocks"]["mlp"]["kernel"] = lora["blocks"]["mlp"]["kernel"]._replace(right=right)
    found = apply_lora(PARAMS, lora, scale=0.7)
    expected = PARAMS["blocks"]["mlp"]["kernel"] + 0.7 * np.einsum("lmr,lrn->lmn", left, right)
    np.testing.assert_allclose(found["blocks"]["mlp"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["out"]["kernel"], PARAMS["out"]["kernel"])


def test_biases_of_heads_are_not_adapted():
    own = {"kernel": jnp.ones((3, 6, 3, 2, 3)), "bias": jnp.ones((3, 3, 2, 3))}
    lora = init_lora(jax.random.key(0), {"blocks": {"qkv": own}}, rank=1, within="blocks.qkv")
    assert lora["blocks"]["qkv"]["bias"] is None
    assert lora["blocks"]["qkv"]["kernel"].right.shape == (3, 1, 18)


def test_first_factors_have_the_variance_of_their_width_and_differ():
    params = {"blocks": {"kernel": jnp.zeros((2, 400, 300))}, "other": jnp.zeros((400, 300))}
    lora = init_lora(jax.random.key(1), params, rank=30, within="")
    for left in (lora["blocks"]["kernel"].left[1], lora["other"].left):
        assert left.std() == pytest.approx(400**-0.5, rel=0.03)
    first, second = lora["blocks"]["kernel"].left
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(first.ravel(), lora["other"].left.ravel())[0, 1]) < 0.05


def test_wrong_ranks_and_names_are_refused():
    with pytest.raises(UserError, match=r"rank is 5, expected 1 to 4: leaf 'blocks.mlp.kernel'"):
        init_lora(jax.random.key(0), PARAMS, rank=5)
    with pytest.raises(UserError, match="within is 'attention'"):
        init_lora(jax.random.key(0), PARAMS, rank=1, within="attention")
