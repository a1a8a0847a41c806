"""Labels that a model gives itself, against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import trusted_examples, ufm

WEAK = np.array([[3.0, 0.0, 0.0], [0.4, 0.2, 0.0], [0.0, 2.0, 2.1], [-9.0, 0.0, 5.0]])
STRONG = np.array([[0.5, 0.1, -1.0], [1.0, 0.0, 2.0], [0.3, 0.6, 0.0], [0.2, 0.9, -0.4]])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.slow
def test_confident_labels_are_sharpened_and_trusted_ones_are_fixed():
    labels, trusted = jnp.array([2, 1, 0, 0]), jnp.array([False, True, False, False])
    given = [jnp.asarray(x, jnp.float32) for x in (WEAK, STRONG)]

    def losses(weak, strong):
        return ufm(weak, strong, labels, trusted, threshold=0.95, temperature=0.4)

    found = jax.jit(losses)(*given)
    targets = softmax(WEAK / 0.4)
    assert targets[0].max() > 0.95 > softmax(WEAK)[0].max()  # by sharpening alone
    targets[1] = [0, 1, 0]
    kept = softmax(WEAK).max(1) > 0.95
    kept[1] = True
    assert kept.tolist() == [False, True, False, True] == np.asarray(found.kept).tolist()
    wanted = np.where(kept, -(targets * np.log(softmax(STRONG))).sum(1), 0)
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.mean(), wanted.sum() / 2, rtol=1e-5)
    # No gradient reaches the unchanged view.
    slopes = jax.grad(lambda *views: losses(*views).mean(), argnums=(0, 1))(*given)
    assert not np.asarray(slopes[0]).any()
    assert np.asarray(slopes[1])[kept].all()
    nothing = ufm(*given, labels, jnp.zeros(4, bool), threshold=1.0)
    assert float(nothing.mean()) == 0
    assert np.asarray(ufm(*given, labels, trusted, threshold=1.0).kept).tolist() == trusted.tolist()


@pytest.mark.slow
def test_a_class_that_a_head_leaves_out_has_no_part():
    labels, trusted = jnp.array([1, 0, 1, 0]), jnp.array([True, False, False, False])
    few = [jnp.asarray(x[:, :2], jnp.float32) for x in (WEAK, STRONG)]
    whole = [jnp.insert(x, 1, -jnp.inf, axis=1) for x in few]

    def mean(weak, strong, labels):
        return ufm(weak, strong, labels, trusted, threshold=0.6, temperature=0.4).mean()

    both = jax.jit(jax.value_and_grad(mean, argnums=1))
    (wanted, slopes), (found, found_slopes) = both(*few, labels), both(*whole, 2 * labels)
    assert wanted > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(found_slopes[:, [0, 2]], slopes, rtol=1e-5, atol=1e-7)
    assert not np.asarray(found_slopes[:, 1]).any()


@pytest.mark.slow
def test_confidence_in_half_precision_is_that_of_its_logits_in_single():
    labels, trusted = jnp.zeros(50, int), jnp.zeros(50, bool)
    half = jnp.stack([jnp.linspace(4, 8, 50), jnp.zeros(50)], axis=1).astype(jnp.bfloat16)
    found, wanted = (ufm(own, own, labels, trusted) for own in (half, half.astype(jnp.float32)))
    np.testing.assert_array_equal(found.kept, wanted.kept)
    assert found.losses.dtype == jnp.float32
    np.testing.assert_array_equal(found.losses, wanted.losses)


def test_views_and_labels_are_of_the_same_examples(unchecked):
    view, labels, trusted = jnp.zeros((4, 3)), jnp.array([2, 1, 0, -1]), jnp.arange(4) < 3
    for given in (
        (view[:1], view, labels, trusted), (view, view[:1], labels, trusted),
        (view, view, labels[:1], trusted), (view, view, labels, trusted[:1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="shapes do not fit: weak"):
            ufm(*given)
    with pytest.raises(ValueError, match="labels must lie between 0 and 2, got values from 0 to 3"):
        ufm(view, view, jnp.array([3, 1, 0, -1]), trusted)
    assert ufm(view, view, labels, trusted).kept.sum() == 3  # others' labels are not read


@pytest.mark.slow
def test_the_most_confident_of_each_class_are_trusted():
    chances = softmax(np.random.default_rng(0).normal(size=(60, 3)) * 2)
    found = np.asarray(trusted_examples(jnp.asarray(chances, jnp.float32), share=0.2, most=100))
    wanted = np.zeros(60, bool)
    for c in range(3):
        wanted[np.argsort(-chances[:, c])[:4]] = True
    np.testing.assert_array_equal(found, wanted)
    assert trusted_examples(jnp.asarray(chances, jnp.float32), most=2).sum() == 6
    assert trusted_examples(jnp.eye(3)).sum() == 3


def test_what_a_share_is_short_of_a_whole_number_is_not_lost():
    sure = np.linspace(0.6, 0.9, 200)[:, None]  # of each class in turn
    chances = np.where(np.eye(2)[np.arange(200) % 2] > 0, sure, 1 - sure)
    found = trusted_examples(jnp.asarray(chances, jnp.float32), share=0.29)
    np.testing.assert_array_equal(found, np.arange(200) >= 200 - 2 * 29)


def test_probabilities_that_trust_nothing_are_refused():
    with pytest.raises(UserError, match=r"probabilities are \[0, 3\], expected those of at least"):
        trusted_examples(jnp.zeros((0, 3)))
    broken = jnp.ones((4, 3)).at[2, 1].set(jnp.nan)
    with pytest.raises(UserError, match="the array of probabilities holds NaN"):
        trusted_examples(broken)
    jax.eval_shape(trusted_examples, broken)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("share", -0.1, "a number between 0 and 1"), ("share", 5, "a number between 0 and 1"),
        ("most", 0, "a number at least 1"), ("most", 2.0, "a whole number"),
    ],
)  # fmt: skip
def test_numbers_that_trust_nothing_are_refused(unchecked, name, value, expected):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected {expected}"):
        trusted_examples(jnp.eye(3), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("threshold", 1.5, "a number between 0 and 1"), ("temperature", 0, "a number above 0"),
        ("temperature", -1.0, "a number above 0"),
    ],
)  # fmt: skip
def test_labels_are_not_sharpened_by_what_is_no_temperature(name, value, expected):
    views = [jnp.asarray(x, jnp.float32) for x in (WEAK, STRONG)]
    with pytest.raises(ValueError, match=f"{name} is {value}, expected {expected}"):
        ufm(*views, jnp.zeros(4, int), jnp.ones(4, bool), **{name: value})
