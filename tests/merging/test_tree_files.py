"""Masks as bits and Fishers in files, read again to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import hard_mask, load_fisher, load_mask, mask_vectors, save_fisher, save_mask

RNG = np.random.default_rng(6)
LOGITS = {
    "dense": {
        "kernel": jnp.asarray(RNG.normal(size=(5, 7))), "bias": jnp.asarray([-1.0, 0.0, 2.0]),
    },
    "blocks": {"scale": jnp.asarray(RNG.normal(size=(2, 3, 4)))},
    "one": jnp.asarray(3.0),
    "none": jnp.zeros((0, 4)),
}  # fmt: skip


def same(found, wanted, kind):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == kind
        assert np.array_equal(a, b)


def test_a_mask_is_kept_as_bits_and_masks_as_before(tmp_path):
    mask, file = hard_mask(LOGITS), tmp_path / "deep" / "mask.safetensors"
    assert mask["dense"]["bias"].tolist() == [0, 0, 1]
    save_mask(file, mask)
    same(load_mask(file), mask, jnp.float32)
    vectors = jax.tree.map(lambda leaf: jnp.ones((2, *leaf.shape)), LOGITS["dense"])
    masked = mask_vectors(vectors, load_mask(file)["dense"])
    assert masked["bias"].tolist() == [[0, 0, 3]] * 2
    save_mask(tmp_path / "booleans", jax.tree.map(lambda leaf: leaf > 0, mask))
    same(load_mask(tmp_path / "booleans"), mask, jnp.float32)
    large = {"w": jnp.asarray(RNG.integers(0, 2, (400, 800)), jnp.float32)}
    save_mask(tmp_path / "large", large)
    same(load_mask(tmp_path / "large"), large, jnp.float32)
    assert (tmp_path / "large").stat().st_size < 1.01 * 4 * 400 * 800 / 32


def test_bits_are_drawn_with_the_probabilities_of_the_logits():
    logits = {"a": jnp.tile(jnp.asarray([-1.0, 0.5]), (20_000, 1)), "b": jnp.zeros((20_000, 2))}
    drawn = hard_mask(logits, key=jax.random.key(0))
    assert set(np.unique(drawn["a"])) == {0, 1}
    np.testing.assert_allclose(drawn["a"].mean(0), 1 / (1 + np.exp([1.0, -0.5])), atol=0.015)
    # Leaves draw for themselves.
    assert abs(np.corrcoef(drawn["a"][:, 0], drawn["b"][:, 0])[0, 1]) < 0.03


def test_a_fisher_is_read_again_to_the_bit(tmp_path):
    fisher = jax.tree.map(lambda leaf: jnp.asarray(leaf**2, jnp.float32), LOGITS)
    save_fisher(tmp_path / "fisher.safetensors", fisher)
    same(load_fisher(tmp_path / "fisher.safetensors"), fisher, jnp.float32)


def test_what_is_no_mask_or_fisher_is_named(tmp_path):
    mask, fisher = tmp_path / "mask", tmp_path / "fisher"
    save_mask(mask, hard_mask(LOGITS))
    save_fisher(fisher, {"w": jnp.ones(3)})
    for call, said in (
        (lambda: save_mask(mask, hard_mask(LOGITS)), "mask exists, expected a new file"),
        (lambda: save_fisher(fisher, {"w": jnp.ones(3)}), "fisher exists, expected a new file"),
        (lambda: save_mask(tmp_path / "a", LOGITS), "leaf 'dense.kernel' of the mask has values"),
        (lambda: save_fisher(tmp_path / "a", LOGITS), "leaf 'dense.kernel' of the Fisher has"),
        (lambda: save_fisher(tmp_path / "a", {"w": jnp.asarray([jnp.nan])}), "holds NaN"),
        (lambda: load_mask(fisher), "fisher holds no mask, expected what `save_mask` wrote"),
        (lambda: load_fisher(mask), "mask holds no fisher, expected what `save_fisher` wrote"),
        (lambda: load_mask(tmp_path / "a"), "a cannot be read as a mask"),
    ):
        with pytest.raises(UserError, match=said):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fisher", "mask"]
    mask.write_bytes(mask.read_bytes()[:-3])
    with pytest.raises(UserError, match="cannot be read as a mask"):
        load_mask(mask)
