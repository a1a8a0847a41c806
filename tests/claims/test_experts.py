"""The trial of merging on tiny beds of patterns; `make claims` measures one that learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common.many import replaced
from experiments.merging import experts, experts_bed
from experiments.merging.experts import TRIAL
from experiments.merging.fishers import fishers_of
from experiments.merging.judging import judged
from experiments.merging.tasks import ImageTask
from rml.errors import UserError
from rml.merging import merge
from rml.ops import trees
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import config_of, made_bed, patterns, put_in_plain
from tests.trials.conformance import conform_trial, refuse

PATH = "configs/merging/experts.py"
SMALL = {
    "seeds": 2, "tuning_seeds": 0, "evaluation.most": 12, "evaluation.validation": 6,
    "learn.steps": 2, "learn.batch_size": 2, "fisher.examples": 8, "fisher.classes": 4,
    "router.most": 8, "router.epochs": 2, "router.batch_size": 8,
}  # fmt: skip


def small(**changes):
    return config_of(PATH, **SMALL | changes)


@pytest.fixture
def tasks(monkeypatch):
    """Two tasks of patterns and a base that nothing was trained for."""
    made = {
        name: ImageTask(*[patterns(seed, 4, 4) for _ in range(3)])
        for seed, name in enumerate(("a", "b"))
    }
    put_in_plain(monkeypatch)
    base = made_bed(small(), made).base
    monkeypatch.setattr(experts_bed, "_image_tasks", lambda config: made)
    monkeypatch.setattr(experts_bed, "_pretrained", lambda config, run: base)
    return made


@pytest.mark.slow
def test_conforms(tasks, tmp_path):
    arms = {name: own._replace(tries={}) for name, own in TRIAL.arms.items()}
    metrics = conform_trial(replace(TRIAL, arms=arms, go=()), small(), tmp_path)
    assert metrics["normalised_experts"] == pytest.approx(1)
    assert metrics["copies_average"] == 1
    assert metrics["copies_experts"] == metrics["copies_ensemble"] == 2
    assert metrics["copies_twin"] > metrics["copies_full"] - 3
    assert {f"normalised_twin_{name}" for name in tasks} <= set(metrics)


@pytest.mark.parametrize(
    ("key", "value"),
    [("merge.way", "sum"), ("twin.routes", "best"), ("merge.keep", 0.0), ("seeds", 0)],
)
def test_one_wrong_value_a_key_is_refused_before_work(key, value, tmp_path):
    refuse(PATH, key, value, tmp_path)


def test_a_task_of_too_few_examples_is_named(tasks, tmp_path):
    config = small(**{"evaluation.most": 17})
    with pytest.raises(UserError, match=r"tasks\.a\.test has 16 examples, expected 17"):
        experts.bed(config, RunDirectory(tmp_path / "run", config.to_dict()))


@pytest.fixture
def seed(tasks):
    """A seed of untrained experts."""
    own = made_bed(small(), tasks)
    part = judged(own, "validation")
    return experts_bed.Seed(3, own, {"test": part}, part, {})


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_way_is_the_method_that_it_names(seed):
    """Ways at other options than their own, beside the library's methods in the plainest form."""
    own, config = seed.bed, small(**{"merge.scale": 0.4, "merge.keep": 0.5, "merge.dropped": 0.3})
    vectors = jax.tree.map(lambda e, b: e - b, own.experts, own.base)

    def added(way):
        return jax.tree.map(lambda b, v: b + way(v), own.base, vectors)

    close(experts.arithmetic(config, seed), added(lambda v: 0.4 * v.sum(0)))
    close(experts.ties(config, seed), merge("ties", own.base, own.experts, scale=0.4, keep=0.5))
    key = jax.random.key(config.seed)
    dropped = merge("dare", own.base, own.experts, scale=0.4, rate=0.3, key=key)
    close(experts.dare(config, seed), dropped)
    sources = [one.train for one in own.tasks.values()]
    found = fishers_of(own, own.experts, own.heads, sources, examples=8, classes=4)
    whole = merge("fisher", own.base, own.experts, fishers=found, favour_first=False)
    expected = jax.tree.map(lambda b, m: b + 0.8 * (m - b), own.base, whole)
    close(experts.fisher(config, seed), expected)
    moved = experts.fisher(replaced(config, {"merge.moved": True}), seed)
    assert trees_differ(moved, expected)
    coins = replaced(config, {"merge.moved": True, "merge.way": "concrete"})
    masked = experts.concrete(coins, seed)
    # Each entry of a masked vector is nought or rescaled by one number a block.
    for b, v, m in zip(*map(jax.tree.leaves, (own.base, vectors, masked)), strict=True):
        if v.size > 16:
            share = (m - b) / (0.4 * v.sum(0))
            assert len(np.unique(np.round(share, 2))) <= 1 + 2 * m.shape[0]


def trees_differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(np.abs(np.asarray(a - b)).max() > 1e-4 for a, b in pairs)


@pytest.mark.slow
def test_what_is_learned_moves_from_its_start_and_differs_among_arms(seed):
    config = small(**{"learn.rate": 0.05})
    whole, alone = (
        experts.atlas(replaced(config, {"merge.by_block": by_block}), seed)
        for by_block in (True, False)
    )
    moved = experts.atlas(replaced(config, {"merge.moved": True}), seed)
    assert trees_differ(whole, alone)
    assert trees_differ(whole, moved)
    start = merge("task_arithmetic", seed.bed.base, seed.bed.experts, scale=0.2)
    close(experts.adamerged(replaced(config, {"learn.rate": 0.0}), seed), start)
    assert trees_differ(experts.adamerged(config, seed), start)


@pytest.mark.slow
def test_twins_that_know_the_task_are_its_experts_and_equal_weights_are_the_average(seed):
    changes = {"twin.compress": "none", "twin.routes": "oracle"}
    config, part = small(**changes), seed.parts["test"]
    right = experts.twin(config, seed).right(part)
    np.testing.assert_array_equal(right, experts.experts(config, seed).right(part))
    equal = experts.twin(replaced(config, {"twin.routes": "equal"}), seed).right(part)
    average = experts.one_model(merge("average", seed.bed.base, seed.bed.experts), seed.bed)
    np.testing.assert_array_equal(equal, average.right(part))
    copy = trees.count_bytes(seed.bed.base)
    assert experts.twin(config, seed).bytes > 3 * copy


def test_a_score_is_whether_an_example_is_right_over_its_experts_accuracy(seed):
    part = seed.parts["test"]._replace(experts=np.array([0.5, 0.8]))
    weights = 1 / (len(part.weights) * part.experts[np.asarray(part.images.task)])
    part = part._replace(weights=jnp.asarray(weights))
    right = np.arange(len(part.weights)) % 3 == 0

    class Bed:
        """A bed of one seed."""

        def of(self, number):
            return seed._replace(parts={"test": part})

    found = experts.score(small(), Bed(), experts.Merged(lambda _: right, 1.0), "test")
    np.testing.assert_allclose(found, right / part.experts[np.asarray(part.images.task)], rtol=1e-5)


def test_task_arithmetic_wins_back_a_share_of_what_experts_gain():
    means = {"base": 0.5, "arithmetic": 0.7, "experts": 0.9}
    assert experts.won_back(means) == pytest.approx(0.5)


def test_classes_of_a_task_are_those_that_its_options_name(tmp_path):
    counts = (5, 20, 10, 15)
    label = np.repeat(np.arange(4), counts)
    image = np.zeros((50, 4, 4, 3), np.uint8) + (10 * label[:, None, None, None]).astype(np.uint8)
    image[..., 0] = 200
    np.savez(tmp_path / "own.npz", image=image, label=label)
    config = ConfigDict({"data": {"image_shape": (4, 4, 1), "data_dir": None}})

    def opened(**own):
        given = ConfigDict({"name": f"npz:{tmp_path / 'own.npz'}", "test": "all"} | own)
        return experts_bed._opened(config, given, "test")

    assert list(opened(every=(1, 2)).class_names) == ["1", "3"]
    assert list(opened(commonest=(1, 3)).class_names) == ["2", "3"]
    two = opened(labels=(3, 0))
    assert list(two.class_names) == ["0", "3"]
    found = two.arrays()
    assert np.bincount(found["label"]).tolist() == [5, 15]
    # Grey is the luma of red, green and blue.
    grey = np.rint(0.299 * 200 + (0.587 + 0.114) * 10 * np.array([0, 3]))
    np.testing.assert_array_equal(found["image"][:, 0, 0, 0], grey[found["label"]])
