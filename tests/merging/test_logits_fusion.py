"""Fused logits against sums in float64, the choice of weights against a search written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from rml.errors import UserError
from rml.merging import choose_alpha, fuse_decode, fuse_logits, kl_shift
from rml.models import Llama, Member, generate, generate_together
from tests.claims.drawn_models import drawn

V, ROWS, GRID = 11, 5, np.arange(0, 2.01, 0.1)
choose = jax.jit(choose_alpha, static_argnames=("low", "high", "step", "active", "refine"))


@pytest.fixture(scope="module")
def logits():
    """Of the large model, two experts and the small one; nobody uses token 3."""
    rng = np.random.default_rng(0)
    large, base = rng.normal(0, 2, (2, ROWS, V))
    experts = base + rng.normal(0, [[[0.5]], [[1.5]]], (2, ROWS, V))
    large[:, 3] = -np.inf
    return large, experts, base


def used(x):
    """Without token 3."""
    return np.delete(x, 3, axis=-1)


def both(log_p, log_q):
    """Both divergences of logits over the tokens that are used, in float64."""
    p, q = (np.exp(log_softmax(used(x), axis=-1)) for x in (log_p, log_q))
    return rel_entr(p, q).sum(-1), rel_entr(q, p).sum(-1)


def loss_of(logits, weights):
    """The paper's objective of weights [t] for every row."""
    large, experts, base = logits
    moved = large + np.einsum("t,trv->rv", weights, experts - base)
    own = both(moved, large)
    wanted = [both(expert, base) for expert in experts]
    return sum((own[0] - one[0]) ** 2 + (own[1] - one[1]) ** 2 for one in wanted)


def test_logits_move_by_weighted_differences(logits):
    large, experts, base = logits
    alpha = np.random.default_rng(1).uniform(0.3, 1.7, (2, ROWS))
    expected = large + np.einsum("tr,trv->rv", alpha, experts - base)
    np.testing.assert_allclose(
        fuse_logits(*map(jnp.asarray, (*logits, alpha))), expected, rtol=1e-4
    )
    half = fuse_logits(*(jnp.asarray(x, jnp.bfloat16) for x in logits), jnp.asarray(alpha))
    assert half.dtype == jnp.float32


def test_shifts_are_both_divergences_without_unused_tokens(logits):
    large, experts, _ = logits
    found = kl_shift(jnp.asarray(large), jnp.asarray(experts[1]))
    for own, expected in zip(found, both(large, experts[1]), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4)


@pytest.mark.parametrize("active", ["one", "all"])
def test_weights_are_those_of_a_search(logits, active):
    points = list(itertools.product(GRID, repeat=2))
    if active == "one":  # the other is 0
        points = [(a, 0.0) for a in GRID] + [(0.0, a) for a in GRID]
    losses = np.stack([loss_of(logits, np.asarray(point)) for point in points])
    found = choose(*map(jnp.asarray, logits), active=active)
    np.testing.assert_allclose(found.loss, losses.min(0), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.alpha.T, np.asarray(points)[losses.argmin(0)], atol=1e-5)


def test_tokens_that_any_one_model_lacks_are_left_out(logits):
    """Beside token 3, which the large model lacks, the small one lacks 5 and one expert 7."""
    large, experts, base = (x.copy() for x in logits)
    base[:, 5] = experts[1, :, 7] = -np.inf
    given = [jnp.asarray(x) for x in (large, experts, base)]
    alpha = np.random.default_rng(1).uniform(0.3, 1.7, (2, ROWS))
    alpha[1, 0] = 0  # 0 times -inf is no number
    fused = np.asarray(fuse_logits(*given, jnp.asarray(alpha)))
    assert (fused[:, [3, 5, 7]] == -np.inf).all()
    few = [np.delete(x, [5, 7], axis=-1) for x in (large, experts, base)]  # `used` takes 3 away
    expected = few[0] + np.einsum("tr,trv->rv", alpha, few[1] - few[2])
    np.testing.assert_allclose(
        used(np.delete(fused, [5, 7], axis=-1)), used(expected), rtol=1e-4, atol=1e-5
    )
    points = [(a, 0.0) for a in GRID] + [(0.0, a) for a in GRID]
    losses = np.stack([loss_of(few, np.asarray(point)) for point in points])
    found = choose(*given)
    np.testing.assert_allclose(found.loss, losses.min(0), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.alpha.T, np.asarray(points)[losses.argmin(0)], atol=1e-5)
    shift = kl_shift(given[1][1], given[0])
    wanted = both(*(np.delete(x, 7, axis=-1) for x in (experts[1], large)))
    for own, expected in zip(shift, wanted, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4)


@pytest.mark.slow
def test_grids_of_experts_end_at_their_own_last_weights(logits):
    low, high = (0.4, 0.0), (0.9, 0.1)
    grids = (np.array([0.4, 0.7, 0.9]), np.array([0.0, 0.1]))  # in steps of 0.3
    points = [(a, 0.0) for a in grids[0]] + [(0.0, a) for a in grids[1]]
    given = [jnp.asarray(x) for x in logits]
    of_pairs = list(itertools.product(*grids))
    for active, own in {"one": points, "all": of_pairs, "first": points[:3]}.items():
        losses = np.stack([loss_of(logits, np.asarray(point)) for point in own])
        found = choose(*given, low=low, high=high, step=0.3, active=active)
        np.testing.assert_allclose(found.loss, losses.min(0), rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(found.alpha.T, np.asarray(own)[losses.argmin(0)], atol=1e-5)
    # Golden sections of the first expert stay within its ends.
    found = choose(*given, low=low, high=high, step=0.3, active="first", refine=12).alpha
    assert not found[1].any()
    assert ((found[0] >= 0.4 - 1e-6) & (found[0] <= 0.9 + 1e-6)).all()


def test_of_equal_losses_the_first_expert_counts(logits):
    """An expert that moved twice as far reaches every other point with half the weight."""
    _, experts, base = logits
    near = base + np.round(8 * (experts[1] - base)) / 32
    pair = [jnp.asarray(x) for x in (np.round(base * 8) / 8, near, 2 * near - base)]
    pair[1:] = [x - base + pair[0] for x in pair[1:]]
    large = pair[0][::-1]
    alone = [
        choose(large, jnp.stack([one, two]), pair[0], step=0.25, active="first")
        for one, two in (pair[1:], pair[:0:-1])
    ]
    even = np.asarray(alone[0].loss == alone[1].loss)
    assert even.any()
    for at in range(2):
        both = choose(large, jnp.stack(pair[1:][:: 1 - 2 * at]), pair[0], step=0.25)
        np.testing.assert_allclose(both.alpha[0][even], alone[at].alpha[0][even])
        assert not both.alpha[1][even].any()


@pytest.mark.slow
def test_divergences_grow_with_the_weight(logits):
    large, experts, base = (jnp.asarray(x) for x in logits)

    @jax.jit
    @jax.vmap
    def shifts(alpha):
        return kl_shift(fuse_logits(large, experts[:1], base, alpha), large)

    for shift in shifts(np.broadcast_to(GRID[:, None, None], (len(GRID), 1, ROWS))):
        assert (np.diff(shift, axis=0) > 0).all()


@pytest.mark.slow
def test_golden_sections_go_between_the_points_of_the_grid(logits):
    grid, finer = (choose(*map(jnp.asarray, logits), refine=n) for n in (0, 12))
    fine = np.arange(0, 2, 0.002)
    losses = np.array([
        loss_of(logits, np.asarray(weights)) for a in fine for weights in ((a, 0.0), (0.0, a))
    ])  # fmt: skip
    np.testing.assert_allclose(finer.loss, losses.min(0), rtol=5e-4, atol=1e-6)
    assert (grid.loss > (1 + 1e-3) * losses.min(0)).sum() >= 3
    assert (finer.alpha.sum(0) % 0.1 > 1e-3).all()


def test_equal_models_take_weight_one_and_become_the_expert(logits):
    _, experts, base = logits
    own = [jnp.asarray(x) for x in (base, experts[:1], base)]
    found = choose(*own)
    np.testing.assert_allclose(found.alpha, 1.0, atol=1e-5)
    np.testing.assert_allclose(found.loss, 0.0, atol=1e-8)
    # Logits of few bits, whose differences are exact: the fused ones are the expert's.
    few = [jnp.asarray(np.round(4 * x) / 4) for x in (base, experts[:1])]
    np.testing.assert_array_equal(
        fuse_logits(few[0], few[1], few[0], jnp.ones((1, ROWS))), few[1][0]
    )
    # Equal experts tie, and the first counts; what did not move has weight 0.
    twice = choose(base, jnp.stack([own[1][0]] * 2), base)
    np.testing.assert_allclose(twice.alpha, [[1.0] * ROWS, [0.0] * ROWS], atol=1e-5)
    same = choose(jnp.asarray(logits[0]), jnp.asarray(base)[None], jnp.asarray(base))
    np.testing.assert_array_equal(same.alpha, 0.0)


def test_constants_of_a_row_and_the_order_of_tokens_do_not_matter(logits):
    large, experts, base = (jnp.asarray(x) for x in logits)
    found = choose(large, experts, base)
    rng = np.random.default_rng(2)
    order = rng.permutation(V)
    other = choose(
        (large + 3.0)[:, order], (experts - rng.normal(size=(2, ROWS, 1)))[..., order],
        (base + 7.0)[:, order],
    )  # fmt: skip
    np.testing.assert_allclose(other.alpha, found.alpha, atol=1e-5)


def test_gradients_are_finite_where_a_token_is_unused(logits):
    large, experts, base = (jnp.asarray(x) for x in logits)
    alpha = jnp.full((2, ROWS), 0.7)

    def nats(experts, base):
        return -jax.nn.log_softmax(fuse_logits(large, experts, base, alpha))[:, 0].sum()

    found = jax.jit(jax.grad(nats, (0, 1)))(experts, base)
    assert all(np.isfinite(own).all() and np.any(own) for own in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step=0.0 give no grid"),
        ({"low": 3.0}, "low=3.0, high=2.0"),
        ({"high": np.inf}, "high=inf, step=0.1 give no grid"),
        ({"step": np.inf}, "step=inf give no grid"),
        ({"refine": 2.0}, "refine is 2.0, expected a whole number"),
        ({"low": (0.0, 1.5), "high": (2.0, 1.0)}, r"high=\(2.0, 1.0\), step=0.1 give no grid"),
        ({"high": (1.0, 1.5, 2.0)}, "expected one weight or 2, one an expert"),
        ({"active": "two"}, "got 'two'"),
        ({"refine": 3, "active": "all"}, "refine must be at least 0"),
    ],
)
def test_wrong_options_are_named(unchecked, logits, options, message):
    with pytest.raises(ValueError, match=message):
        choose_alpha(*map(jnp.asarray, logits), **options)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("width", [1, V - 1])
def test_logits_of_another_vocabulary_are_refused(unchecked, logits, at, width):
    given = [jnp.asarray(x[..., :width] if at == i else x) for i, x in enumerate(logits)]
    for call in (choose_alpha, lambda *given: fuse_logits(*given, jnp.ones((2, ROWS)))):
        with pytest.raises(ValueError, match=r"shapes do not fit: large .* experts .* base"):
            call(*given)
    with pytest.raises(ValueError, match=r"log_p .*, log_q \(5, .* as \[\.\.\., v\]"):
        kl_shift(jnp.asarray(logits[0]), jnp.asarray(logits[2][:, :width]))


def test_weights_are_of_all_experts(logits):
    with pytest.raises(ValueError, match=r"alpha has shape \(1, 5\), expected weights of 2 exp"):
        fuse_logits(*map(jnp.asarray, logits), jnp.ones((1, ROWS)))


@pytest.fixture(scope="module")
def models():
    """A large decoder, a small one and two others of its kind, all with random weights."""
    large = Llama(vocabulary=V, width=16, depth=2, heads=2, mlp=16)
    small = Llama(vocabulary=V, width=8, depth=1, heads=2, mlp=8)
    base, *experts = (drawn(small, seed) for seed in range(3))
    stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *experts)
    return Member(large, drawn(large, 3)), Member(small, stacked, True), Member(small, base)


TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, V, (3, 4)), jnp.int32)
MASK = jnp.asarray([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]], bool)


@pytest.mark.slow
def test_without_weight_the_large_model_writes_alone(models):
    large, experts, base = models
    found = fuse_decode(large, experts, base, TOKENS, MASK, steps=5, alpha=0.0)
    alone = generate(large.module, large.variables, TOKENS, MASK, steps=5)
    np.testing.assert_array_equal(found.tokens, alone)
    # A text goes on behind its last token, whatever pads it.
    short = generate(large.module, large.variables, TOKENS[2:, :3], steps=5)
    np.testing.assert_array_equal(found.tokens[2:], short)


@pytest.mark.slow
def test_fused_texts_are_those_of_whole_readings(models):
    large, experts, base = models
    found = fuse_decode(large, experts, base, TOKENS, steps=4, step=0.25, high=1.5)
    assert found.alpha.shape == (2, 3, 4)

    @jax.jit
    def logits(tokens):
        def of(member):
            def one(variables):
                hidden = member.module.apply(variables, tokens)
                return member.module.apply(variables, hidden, method="logits")

            return jax.vmap(one)(member.variables) if member.stacked else one(member.variables)

        return [of(member) for member in (large, experts, base)]

    # Position n of a whole reading has seen tokens 0 to n, whatever comes after.
    whole = jnp.concatenate([TOKENS, found.tokens], axis=1)
    own = [x[..., 3:-1, :] for x in logits(whole)]
    chosen = choose(*own, step=0.25, high=1.5)
    np.testing.assert_allclose(found.alpha, chosen.alpha, atol=1e-5)
    expected = np.argmax(fuse_logits(*own, chosen.alpha), axis=-1)
    np.testing.assert_array_equal(found.tokens, expected)
    assert found.alpha.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("at", "name"), enumerate(("the large model", "experts", "the base")))
def test_models_of_broken_values_are_refused(models, at, name):
    broken = list(models)
    variables = jax.tree.map(np.array, models[at].variables)
    for leaf in jax.tree.leaves(variables):
        leaf[..., -1] = np.nan
    broken[at] = models[at].replace(variables=jax.tree.map(jnp.asarray, variables))
    with pytest.raises(UserError, match=f"of {name} holds NaN or infinite values"):
        fuse_decode(*broken, TOKENS, steps=1)
    jax.eval_shape(lambda *given: fuse_decode(*given, TOKENS, steps=1), *broken)


@pytest.mark.slow
def test_members_of_other_vocabularies_and_single_experts_are_refused(models):
    large, experts, base = models
    other = Member(base.module.clone(vocabulary=V + 1), base.variables)
    with pytest.raises(ValueError, match=rf"vocabularies of \[{V}, {V + 1}\] tokens"):
        generate_together((large, other), lambda logits: (logits[0], None), TOKENS, steps=1)
    with pytest.raises(ValueError, match="expected variables with an axis of experts"):
        fuse_decode(large, base, base, TOKENS, steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        fuse_decode(large, experts, base, TOKENS, steps=0)
