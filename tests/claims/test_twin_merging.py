"""Twin-merging's recipe on a tiny bed of patterns; `make claims` measures one that learns."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.merging import twin_merging, twin_multitask, twin_parts
from experiments.merging.judging import Part, of_hits
from experiments.merging.tasks import Images
from experiments.merging.twin_costs import bytes_of
from experiments.merging.twin_parts import (
    accuracy_lost,
    by_heads_of,
    by_one_head,
    by_task_heads,
)
from experiments.merging.twin_tasks import Gaps, check_tasks, slopes
from rml.errors import UserError
from rml.merging import Twin, load_twin, save_twin
from rml.ops.trees import LowRank
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import (
    config_of,
    made_bed,
    patterns,
    put_in,
    put_in_plain,
    small_run,
)

PATH = "configs/merging/twin_merging.py"
RECIPE = {
    "search.tries": 2, "methods.adamerging.steps": 2, "methods.adamerging.batch_size": 2,
    "methods.adamerging.learning_rates": (0.01,), "twin.fractions": (0.5,), "router.most": 8,
    "router.epochs": 2, "router.batch_size": 8, "counts": (1,), "unseen": ("b",),
    "timing.batch_size": 4, "timing.repeats": 1,
}  # fmt: skip


def untrained(config, run, sources, validation, *, starts, base, heads):
    """The start in the place of a fine-tuned model, whose images and head are as they should be."""
    assert config.train.batch_size == 8
    assert heads.shape == (1, 8, 8)
    assert sources[0].labels.max() == validation[0].labels.max() == 7
    return starts


@pytest.mark.slow
def test_a_small_run_measures_every_claim_draws_and_saves(monkeypatch, tmp_path):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    monkeypatch.setattr(twin_multitask, "finetuned", untrained)
    bed = made_bed(config_of(PATH, **RECIPE), made)
    RunDirectory(tmp_path / "run", bed.config.to_dict()).close()
    old = Twin(bed.base, {"bias": jnp.ones((2, 3))})
    save_twin(tmp_path / "run" / "twin", old, names=("of an", "older config"))
    found = small_run(twin_merging, bed, monkeypatch, tmp_path / "run")
    assert found["normalised_experts"] == pytest.approx(1)
    assert found["copies_experts"] == 2
    assert load_twin(tmp_path / "run" / "twin").names == ("a", "b")
    for claim in twin_merging.CLAIMS:
        assert claim.statement.startswith(("By the head of each", "By one head over"))


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_static_weights_may_be_none_or_small(target, monkeypatch):
    config = config_of(PATH, **RECIPE)
    bed = SimpleNamespace(tasks={"a": 0, "b": 0, "c": 0})
    monkeypatch.setattr(twin_parts, "_moved", lambda twin, weights: weights)
    tried = []

    def read(bed, part, weights):
        tried.append(weights)
        return SimpleNamespace(normalised=-np.abs(np.asarray(weights).sum(keepdims=True) - target))

    monkeypatch.setattr(twin_parts, "read", read)
    found = twin_parts.best_static(config, bed, None, None)
    assert found.shape == (3,)
    assert found.sum() == pytest.approx(target)
    assert len(tried) == twin_parts.static_tries(config)


def test_accuracy_that_is_lost_counts_tasks_equally():
    images = Images(jnp.zeros((5, 1)), jnp.zeros(5), jnp.asarray([0, 0, 1, 1, 1]))
    experts = np.array([0.5, 0.8])
    weights = 1 / (2 * np.array([2, 2, 3, 3, 3]) * experts[[0, 0, 1, 1, 1]])
    part = Part(images, jnp.asarray(weights), experts)
    first, second = (of_hits(part, np.array(x, bool)) for x in ([1, 1, 1, 0, 1], [1, 0, 0, 0, 1]))
    wanted = first.accuracy.mean() - second.accuracy.mean()
    assert accuracy_lost(part, first, second).mean() == pytest.approx(wanted)
    assert wanted == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.slow
def test_heads_of_tasks_and_one_head_of_all_classes(monkeypatch):
    bed = made_bed(config_of(PATH), put_in(monkeypatch))
    axes = jnp.eye(8)
    bed = bed._replace(heads=axes.reshape(2, 4, 8))
    task, label = jnp.asarray([0, 0, 1, 1]), jnp.asarray([2, 1, 3, 0])
    part = Part(Images(jnp.zeros((4, 1)), label, task), jnp.full(4, 1 / 4), np.ones(2))
    # The second and the fourth have a class of the same number in the other task, the latter first.
    found = axes[4 * task + label].at[1].add(0.5 * axes[5]).at[3].add(2 * axes[0])
    for tasks, right in (([0, 0, 1, 1], [1, 1, 1, 1]), ([0, 1, 1, 0], [1, 0, 1, 0])):
        own = by_heads_of(bed, part, found, jnp.asarray(tasks))
        assert own.normalised.tolist() == right
    assert by_task_heads(bed, part, found).accuracy.tolist() == [1, 1]
    assert by_one_head(bed, part, found).normalised.tolist() == [1, 1, 1, 0]


@pytest.mark.slow
def test_small_tasks_are_repeated_in_the_images_of_all(monkeypatch):
    made = put_in(monkeypatch)
    bed = made_bed(config_of(PATH), made)
    made["b"] = made["b"]._replace(train=patterns(1, 4, 1))
    arrays = twin_multitask.together(bed, "train").arrays()
    assert arrays["label"].tolist() == [0, 1, 2, 3] * 4 + [4, 5, 6, 7] * 4
    for i in (0, 3):
        assert np.array_equal(arrays["image"][16 + i], made["b"].train.arrays()["image"][i])
        assert np.array_equal(arrays["image"][28 + i], arrays["image"][16 + i])


def test_slopes_are_those_of_a_line_through_mean_gains():
    rng = np.random.default_rng(0)
    sizes = {1: 20, 2: 50, 4: 90}
    gaps = {n: Gaps(np.arange(size), *rng.normal(n, 3, (2, size))) for n, size in sizes.items()}
    found = slopes(gaps)
    for name, kind in (("gap_slope", "twin"), ("uniform_gap_slope", "uniform")):
        means = [getattr(gaps[n], kind).mean() for n in sizes]
        assert found[name] == pytest.approx(np.polyfit(list(sizes), means, 1)[0])
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_masked_entries_cost_a_bit_and_what_is_stored():
    part = LowRank(jnp.ones((2, 3, 1)), jnp.ones((2, 1, 5)))
    twin = Twin({"w": jnp.zeros((3, 5))}, {"w": part})
    assert bytes_of(twin) == 4 * (15 + 2 * 8)
    masked = Twin(twin.shared, {"w": jnp.zeros((2, 3, 5)).at[0, 0].set(1.0)})
    assert bytes_of(masked, sparse=True) == 4 * (15 + 5) + 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unseen": ("aa",)}, "did you mean 'a'"),
        ({"unseen": ("a", "b")}, "unseen has 2 of 2 tasks"),
        ({"counts": (3,)}, "counts has 3, expected 1 to 2"),
    ],
)
def test_tasks_that_are_not_there_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        check_tasks(config_of(PATH, **RECIPE | changes))
