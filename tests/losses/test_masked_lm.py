"""The masked language model's loss and head against float64 pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from rml.losses import masked_lm
from rml.models import MaskedLMHead

TARGETS = np.array([[1, 0, 6], [2, 2, 3], [0, 5, 4]])
WHERE = np.array([[True, True, False], [True, False, False], [False, False, False]])


def reference(oracle, logits):
    nats = oracle.lse(logits) - np.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
    return np.array([nats[0, :2].mean(), nats[1, 0], 0.0])


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_hidden_tokens(oracle, check, normal):
    targets, where = jnp.asarray(TARGETS), jnp.asarray(WHERE)
    check(
        lambda x: masked_lm(x, targets, where=where),
        lambda x: reference(oracle, x).mean(),
        3 * normal(0, 3, 3, 7),
    )
    logits = 3 * normal(1, 3, 3, 7)
    each = masked_lm(jnp.asarray(logits, jnp.float32), targets, where=where, reduction="none")
    np.testing.assert_allclose(each, reference(oracle, logits), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("target", [4, -100, 7])
def test_tokens_that_are_not_hidden_have_no_gradient_whatever_they_are(normal, target):
    logits = jnp.where(jnp.asarray(WHERE)[..., None], jnp.asarray(normal(2, 3, 3, 7)), jnp.nan)
    targets = jnp.asarray(np.where(WHERE, TARGETS, target))
    value, grad = jax.value_and_grad(masked_lm)(
        logits.astype(jnp.float32), targets, where=jnp.asarray(WHERE)
    )
    assert np.isfinite(value)
    assert not np.asarray(grad)[~WHERE].any()
    assert np.abs(np.asarray(grad)[WHERE]).sum(axis=-1).min() > 0.1


def test_tokens_that_are_not_hidden_may_be_anything_to_a_program_that_knows_its_mask(normal):
    logits, where = jnp.asarray(normal(2, 3, 3, 7), jnp.float32), jnp.asarray(WHERE)
    # A mask that is a constant becomes numbers: what it leaves out is multiplied by 0.
    program = jax.jit(lambda logits, targets: masked_lm(logits, targets, where=where))
    wanted = program(logits, jnp.asarray(np.where(WHERE, TARGETS, 0)))
    for target in (-100, 7):
        found = program(logits, jnp.asarray(np.where(WHERE, TARGETS, target)))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("target", [-1, 7])
def test_a_hidden_token_of_no_vocabulary_is_refused(target):
    where = jnp.asarray(WHERE)
    targets = jnp.asarray(np.where(WHERE, TARGETS, -100)).at[1, 0].set(target)
    with pytest.raises(ValueError, match=f"targets must lie between 0 and 6, .* {target}"):
        masked_lm(jnp.zeros((3, 3, 7)), targets, where=where)
    value = masked_lm(jnp.zeros((3, 3, 7)), targets, where=where.at[1, 0].set(False))
    np.testing.assert_allclose(value, np.log(7) / 3, rtol=1e-6)


def test_the_head_is_a_layer_its_norm_and_the_table_of_tokens(normal):
    x, table = normal(3, 2, 3, 4), normal(4, 9, 4)
    head = MaskedLMHead()
    own = {
        "dense": {"kernel": normal(5, 4, 4), "bias": normal(6, 4)},
        "norm": {"scale": normal(7, 4), "bias": normal(8, 4)},
        "bias": normal(9, 9),
    }
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), own)
    y = x @ own["dense"]["kernel"] + own["dense"]["bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    y = y * own["norm"]["scale"] + own["norm"]["bias"]
    found = head.apply({"params": own}, jnp.asarray(x, jnp.float32), jnp.asarray(table, "float32"))
    np.testing.assert_allclose(found, y @ table.T + own["bias"], rtol=2e-4, atol=2e-4)
