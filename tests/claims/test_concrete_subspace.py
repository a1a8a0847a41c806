"""Concrete subspaces' recipe on a tiny bed of patterns; `make claims` measures one that learns."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.merging import concrete_masks, concrete_subspace
from experiments.merging.concrete_masks import Mask, of_tasks
from experiments.merging.judging import Part, halves, of_hits
from experiments.merging.tasks import Images
from rml.errors import UserError
from rml.merging import load_mask, save_mask
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import config_of, made_bed, put_in, put_in_plain, small_run

RECIPE = {
    "search.tries": 2, "methods.adamerging.steps": 2, "methods.adamerging.batch_size": 2,
    "methods.adamerging.learning_rates": (0.01,), "mask.steps": 3, "mask.batch_size": 2,
    "mask.learning_rates": (0.01, 0.1), "mask.draws": 2, "unseen": ("b",),
}  # fmt: skip


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(monkeypatch, tmp_path):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    bed = made_bed(config_of("configs/merging/concrete_subspace.py", **RECIPE), made)
    RunDirectory(tmp_path / "run", bed.config.to_dict()).close()
    save_mask(tmp_path / "run" / "mask.safetensors", {"of an older config": jnp.ones(3)})
    found = small_run(concrete_subspace, bed, monkeypatch, tmp_path / "run")
    mask = load_mask(tmp_path / "run" / "mask.safetensors")
    assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, bed.base)
    shares = [found[name] for name in found if name.startswith("marginal_")]
    assert len(shares) == 16
    assert all(0 < share <= 1 + 1e-6 for share in shares)
    assert found["rate_at_edge_bilevel"] == found["rate_at_edge_few"] == 1.0  # of two rates
    assert found["mask_bytes"] == (tmp_path / "run" / "mask.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("unseen", "said"),
    [(("c",), "unknown task of unseen 'c'"), (("a", "b"), "unseen has 2 of 2 tasks"),
     ((), "unseen has 0 of 2 tasks")],
)  # fmt: skip
def test_unseen_tasks_that_are_not_there_are_named(unseen, said):
    own = config_of("configs/merging/concrete_subspace.py", **RECIPE | {"unseen": unseen})
    with pytest.raises(UserError, match=said):
        concrete_subspace.run(own, None)


def test_masked_arithmetic_takes_the_scale_that_it_is_given():
    """A constant mask changes nothing, so that arithmetic is left: the base and all vectors."""
    config = config_of("configs/merging/concrete_subspace.py", **RECIPE)
    bed = SimpleNamespace(
        base={"w": jnp.array([1.0, 2.0])}, experts={"w": jnp.array([[2.0, 2.0], [1.0, 5.0]])}
    )
    mask = {"w": jnp.full(2, 0.5)}
    for given, scale in (({}, config.mask.scale), ({"scale": 0.7}, 0.7)):
        found = concrete_masks.masked_arithmetic(config, bed, mask, **given)
        np.testing.assert_allclose(found["w"], [1 + scale, 2 + 3 * scale], rtol=1e-6)


@pytest.fixture
def numbers(monkeypatch):
    """The recipe's config, and a bed whose models, masks and vectors are numbers."""
    config = config_of("configs/merging/concrete_subspace.py", **RECIPE)
    monkeypatch.setattr(concrete_masks, "drawn_batches", lambda *_, **__: None)
    monkeypatch.setattr(concrete_masks, "subtract", lambda *_: 5.0)
    monkeypatch.setattr(concrete_masks, "probabilities", lambda logits: logits)
    return config, SimpleNamespace(module=None, base=0, experts=0, heads=0, config=config)


def test_a_mask_is_learned_and_chosen_at_the_scale_that_is_given(numbers, monkeypatch):
    config, bed = numbers
    scales = {"learned": [], "merged": []}

    def learn(*given, sampled, by_block):
        options, rate = given[7:9]
        scales["learned"].append(options["scale"])
        return Mask(rate, [0.0], rate)

    def merge(config, bed, mask, scale):
        scales["merged"].append(scale)
        return mask

    monkeypatch.setattr(concrete_masks, "_learned", learn)
    monkeypatch.setattr(concrete_masks, "masked_arithmetic", merge)
    monkeypatch.setattr(
        concrete_masks, "best",
        lambda bed, part, rates, make: max((rate, make(rate)) for rate in rates),
    )  # fmt: skip
    for given, scale in (({}, config.mask.scale), ({"scale": 0.7}, 0.7)):
        found = concrete_masks.learned(config, bed, None, None, **given)
        assert found.logits == found.rate == max(config.mask.learning_rates)
        assert scales == {"learned": [scale] * 2, "merged": [scale] * 2}
        scales = {"learned": [], "merged": []}


def test_a_mask_learned_with_coefficients_is_chosen_by_adamerging(numbers, monkeypatch):
    config, bed = numbers
    monkeypatch.setattr(concrete_masks, "behind", lambda vectors, mask: vectors * mask)
    monkeypatch.setattr(concrete_masks, "_learned", lambda *args, **_: Mask(args[8], [0.0], 0))
    monkeypatch.setattr(concrete_masks, "best", lambda bed, part, rates, make: (0, make(rates[1])))
    seen = []

    def merge(config, bed, validation, *, unlabelled, vectors, by_block):
        seen.append((validation, unlabelled, vectors, by_block))
        return "merged"

    monkeypatch.setattr(concrete_masks, "adamerged", merge)
    learned = concrete_masks.learned(config, bed, "images", "held", bilevel=True)
    concrete_masks.learned(config, bed, "images", "held", bilevel=True, by_block=False)
    assert learned.rate == 0.1
    assert learned.model == "merged"
    assert seen == [("held", "images", 0.5, True), ("held", "images", 0.5, False)]


def test_a_course_ends_with_the_mask_and_begins_with_its_first_steps(monkeypatch):
    """A prefix of the batches is learned from; what is merged is the mask after it."""
    config = config_of("configs/merging/concrete_subspace.py", **RECIPE)
    bed = SimpleNamespace(module=None, base=0, experts=0, heads=0, config=config)
    monkeypatch.setattr(concrete_masks, "drawn_batches", lambda *_: {"x": jnp.arange(6)})
    monkeypatch.setattr(concrete_masks, "subtract", lambda *_: 0)
    monkeypatch.setattr(concrete_masks, "probabilities", lambda logits: logits)
    monkeypatch.setattr(concrete_masks, "masked_arithmetic", lambda config, bed, mask: mask)
    seen = []

    def learn(module, base, vectors, heads, batches, ahead, scale, options, rate, key, *, sampled):
        seen.append((batches["x"].tolist(), ahead, rate, sampled))
        return Mask(len(batches["x"]), None, rate)

    monkeypatch.setattr(concrete_masks, "_learned", learn)
    found = concrete_masks.course(config, bed, None, Mask(6, np.zeros(6), 0.7))
    assert found == {2: 2, 3: 3, 5: 5, 6: 6}
    assert seen[0] == ([0, 1], None, 0.7, True)


def test_a_share_of_the_most_entropy_is_one_of_equal_classes_and_zero_of_one():
    odds = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5]])
    present = np.array([[True, True, False], [True] * 3])
    task = np.array([0, 0, 1, 1])
    mean = np.array([0.5, 0.25, 0.25])
    wanted = (1 - (mean * np.log(mean)).sum() / np.log(3)) / 2
    assert concrete_masks.share_of_most(odds, task, present) == pytest.approx(wanted)
    assert concrete_masks.share_of_most(odds[2:3], np.zeros(1, int), present[1:]) == 0


@pytest.mark.slow
def test_halves_and_parts_count_tasks_equally():
    task = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    experts = np.array([0.5, 0.8, 1.0])
    sizes = np.bincount(task)
    weights = 1 / (3 * sizes * experts)
    part = Part(
        Images(jnp.zeros((9, 1)), jnp.arange(9), jnp.asarray(task)),
        jnp.asarray(weights[task], jnp.float32), experts,
    )  # fmt: skip
    first, second = halves(part)
    # Labels are numbers of images: each is in one half, and every task is in both.
    assert sorted([*first.images.label.tolist(), *second.images.label.tolist()]) == [*range(9)]
    assert np.bincount(first.images.task).tolist() == [2, 2, 1]
    assert np.bincount(second.images.task).tolist() == [1, 2, 1]
    for half in (first, second, of_tasks(part, [0, 2])):
        everything = np.ones(len(half.weights), bool)
        wanted = (1 / half.experts).mean()
        assert of_hits(half, everything).normalised.mean() == pytest.approx(wanted, rel=1e-5)
    some = of_tasks(part, [0, 2])
    assert np.array_equal(some.images.task, [0, 0, 0, 1, 1])
    assert np.array_equal(some.images.label, [0, 1, 2, 7, 8])
    one = concrete_subspace._few(part)
    assert np.array_equal(one.label, [0, 3, 7])
    assert jax.tree.leaves(one)[0].shape == (3, 1)
