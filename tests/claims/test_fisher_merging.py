"""Fisher merging's recipe on a tiny bed of patterns; `make claims` measures one that learns."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments.merging import bed as bed_recipe
from experiments.merging import (
    finetuning,
    fisher_ensembling,
    fisher_merging,
    fisher_robust,
    fisher_transfer,
    judging,
    ranking,
    tasks,
)
from experiments.merging.fisher_robust import Line, area, robustness
from experiments.merging.judging import Part, Reading
from rml import data
from rml.errors import UserError
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import config_of, made_bed, patterns, put_in, put_in_plain

RECIPE = {
    "fisher.examples": 16, "fisher.classes": 2, "search.tries": 2, "methods.adamerging.steps": 2,
    "methods.adamerging.batch_size": 2, "methods.adamerging.learning_rates": (0.01,),
    "ensembling.task": "a", "ensembling.models": 2, "ensembling.steps": 4, "robust.task": "a",
    "robust.other": "b", "robust.points": 2, "transfer.targets": ("a", "b"), "transfer.shots": 4,
    "transfer.steps": 4, "transfer.batch_size": 4, "transfer.points": 2,
}  # fmt: skip


@pytest.fixture
def little_data(monkeypatch):
    monkeypatch.setattr(fisher_robust, "font_digits", lambda config: patterns(0, 4, 4))
    return put_in(monkeypatch)


def untrained(config, run, sources, validation, *, starts, base, heads):
    """Models that differ by chance in the place of fine-tuned ones."""
    rng = np.random.default_rng(1)
    assert len(sources) == len(validation) == len(heads) == jax.tree.leaves(starts)[0].shape[0]
    return jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(x.dtype),
                        starts)  # fmt: skip


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(little_data, monkeypatch, tmp_path):
    put_in_plain(monkeypatch)
    config = config_of("configs/merging/fisher_merging.py", **RECIPE)
    bed = made_bed(config, little_data)
    monkeypatch.setattr(fisher_merging, "open_bed", lambda *_: bed)
    for module in (fisher_ensembling, fisher_transfer):
        monkeypatch.setattr(module, "finetuned", untrained)
    directory = RunDirectory(tmp_path / "run", config.to_dict())
    found = fisher_merging.run(config, directory)
    directory.close()
    assert np.isfinite(list(found.values())).all()
    assert {claim.metric for claim in fisher_merging.CLAIMS} <= set(found)
    assert found["eight_experts"] == pytest.approx(1.0, abs=1e-6)
    assert {claim.null for claim in fisher_merging.CLAIMS} <= set(found)
    assert 0 < found["cost_ratio"] < found["cost_ratio_exact"]
    assert found["ensembling_flops_share"] == 1 / 2  # of two models
    assert all(0 <= found[name] <= 1 for name in ("floored_ensembling", "floored_few"))
    for kind in ("robust", "robust_area"):
        assert found[f"{kind}_fisher_over_average"] == pytest.approx(
            found[f"{kind}_fisher"] - found[f"{kind}_average"]
        )
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(fisher_merging.CAPTIONS)


@pytest.mark.slow
def test_a_bed_is_trained_and_read_by_another_recipe(little_data, monkeypatch, tmp_path):
    own = config_of("configs/merging/bed.py")
    start = made_bed(own, little_data).base
    monkeypatch.setattr(bed_recipe, "pretrained_base", lambda *_: start)
    directory = RunDirectory(tmp_path / "bed", own.to_dict())
    metrics = bed_recipe.run(own, directory)
    ended = directory.write_summary(metrics=metrics, claims=[], seconds=1.0)
    directory.close()
    assert set(bed_recipe.CAPTIONS) == {p.name for p in (tmp_path / "bed/figures").glob("*.png")}
    config = config_of("configs/merging/fisher_merging.py", **RECIPE)
    config.bed.run = str(tmp_path / "bed")
    (tmp_path / "bed" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"bed\.run is '.*/bed', a run that has not ended"):
        bed_recipe.open_bed(config, directory)
    (tmp_path / "bed" / "summary.json").write_text(json.dumps(ended))
    bed = bed_recipe.open_bed(config, directory)
    table = bed_recipe.accuracies(bed, bed.images("test"))
    np.testing.assert_allclose(np.diagonal(table[1:]).mean(), metrics["own"], rtol=1e-6)
    np.testing.assert_allclose(table[0].mean(), metrics["base"], rtol=1e-6)
    for path in (("patches", "kernel"), ("blocks", "qkv", "kernel")):
        one, all_ = (functools.reduce(dict.__getitem__, path, t) for t in (start, bed.experts))
        np.testing.assert_allclose(functools.reduce(dict.__getitem__, path, bed.base), one)
        assert all((np.asarray(all_)[i] != np.asarray(one)).any() for i in range(2))
    images = little_data["b"].test.arrays()["image"]
    found = rml.load(tmp_path / "bed", expert="b")(images)
    wanted = finetuning.features(bed.module, bed_recipe.take(bed.experts, 1), jnp.asarray(images))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    with pytest.raises(UserError, match="expert is 'c', expected one of: a, b"):
        rml.load(tmp_path / "bed", expert="c")
    config.model.width, config.train.steps = 16, 5
    with pytest.raises(UserError, match=r"a bed of another config.*model\.width: 8 there, 16 now"):
        bed_recipe.open_bed(config, directory)
    config.bed.run = str(tmp_path)
    with pytest.raises(UserError, match="expected the directory of a run"):
        bed_recipe.open_bed(config, directory)


def test_fishers_of_the_target_are_those_of_its_way():
    own = {"a": jnp.arange(1.0, 25.0), "b": jnp.arange(8.0)[:, None]}
    made = {
        way: fisher_transfer.targets_fisher(way, own, 3)
        for way in ("fisher", "shuffled", "average")
    }
    for name, leaf in own.items():
        np.testing.assert_array_equal(made["fisher"][name], leaf)
        np.testing.assert_array_equal(made["average"][name], np.ones_like(leaf))
        moved = np.asarray(made["shuffled"][name])
        assert moved.shape == leaf.shape
        assert (moved != np.asarray(leaf)).any()
        np.testing.assert_array_equal(np.sort(moved, axis=None), np.sort(leaf, axis=None))
    # Donors' entries are exchanged otherwise, or both would still stand in like places.
    key = jax.random.key(3)
    donors = fisher_transfer.shuffled(jax.tree.map(lambda leaf: leaf[None], own), key)
    assert (np.asarray(donors["a"][0]) != made["shuffled"]["a"]).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ensembling.task": "c"}, "unknown task of ensembling.task 'c'; expected one of: a, b"),
        ({"robust.task": "c"}, "unknown task of robust.task 'c'"),
        ({"robust.other": "c"}, "unknown task of robust.other 'c'"),
        ({"robust.other": "a"}, "robust.other is 'a', expected another"),
        ({"transfer.targets": ("a", "c")}, "unknown task of transfer.targets 'c'"),
        ({"transfer.targets": ()}, r"transfer.targets is \(\), expected one task or more"),
    ],
)
def test_tasks_that_are_not_there_are_named(changes, said):
    config = config_of("configs/merging/fisher_merging.py", **RECIPE | changes)
    with pytest.raises(UserError, match=said):
        fisher_merging.run(config, None)


def test_the_one_expert_is_chosen_on_validation_images(monkeypatch):
    """Experts by what they are right on: the first is best on validation images alone."""
    right = {("validation", 0): 0.9, ("validation", 1): 0.4, ("test", 0): 0.5, ("test", 1): 0.8}
    images = tasks.Images(jnp.zeros((4, 1)), jnp.zeros(4), jnp.asarray([0, 0, 1, 1]))
    parts = {name: SimpleNamespace(name=name, images=images, weights=np.full(4, 0.25))
             for name in ("validation", "test")}  # fmt: skip
    bed = SimpleNamespace(experts=jnp.arange(2), base=jnp.array(0), tasks={"a": 1, "b": 2})

    def read(bed, part, params):
        return Reading(np.full(4, right[part.name, int(params)]), np.zeros(2))

    monkeypatch.setattr(ranking, "read", read)
    for name in ("merge", "weighted", "grams_of", "regmeaned", "adamerged", "ensembled"):
        monkeypatch.setattr(ranking, name, lambda *args, **options: jnp.array(0))
    monkeypatch.setattr(ranking, "scaled", lambda *args: (jnp.array(0), 1.0))
    bed.tasks = {name: SimpleNamespace(train=None) for name in ("a", "b")}
    config = SimpleNamespace(fisher=SimpleNamespace(examples=16))
    found = ranking.baselines(config, bed, parts["validation"], parts["test"])
    assert found["single"].normalised.mean() == pytest.approx(0.5)


def test_right_answers_count_by_task_and_by_expert():
    images = tasks.Images(jnp.zeros((5, 1)), jnp.zeros(5), jnp.asarray([0, 0, 1, 1, 1]))
    # Experts are right on one of two, and on two of three.
    weights = np.array([1, 1, 0.5, 0.5, 0.5]) / 2
    part = Part(images, jnp.asarray(weights), np.array([0.5, 2 / 3]))
    reading = judging.of_hits(part, np.array([True, True, False, True, False]))
    np.testing.assert_allclose(reading.normalised.mean(), (1 / 0.5 + (1 / 3) / (2 / 3)) / 2)
    np.testing.assert_allclose(reading.accuracy, [1, 1 / 3])


def test_targets_count_equally_and_differences_are_paired():
    def reading(values):
        return Reading(np.asarray(values, float), np.zeros(1))

    found = {
        "x": [reading([1, 0]), reading([1, 1, 1, 0])],
        "y": [reading([0, 0]), reading([0] * 4)],
    }
    metrics = fisher_merging.differences("few", found, {"x_over_y": ("x", "y")})
    assert metrics["few_x"] == metrics["x_over_y"] == pytest.approx((0.5 + 0.75) / 2)
    values = np.array([1.5, 0, 0.75, 0.75, 0.75, 0])
    half = 2.5705818 * values.std(ddof=1) / np.sqrt(6)  # Student's t of 5 degrees
    assert metrics["x_over_y_high"] == pytest.approx(values.mean() + half)


def test_robustness_is_read_where_validation_is_reached():
    outside = np.array([[0.4, 0.6], [0.7, 0.7], [0.5, 0.5]])
    line = Line(np.array([0, 0.5, 1]), np.array([0.6, 0.9, 0.95]), np.zeros(3), outside)
    assert robustness(line, 0.9) == pytest.approx(0.7)
    assert robustness(line, 0.93) == pytest.approx(0.7 - 0.2 * 0.6)  # between two weights
    assert robustness(line, 0.675) == pytest.approx(0.5 + 0.2 * 0.25)
    assert robustness(line, 0.5) == pytest.approx(0.5)
    assert robustness(line, 0.99) == pytest.approx(0.5)
    levels = np.array([0.6, 0.675, 0.9, 0.93])
    assert area(line, levels) == pytest.approx((0.5 + 0.55 + 0.7 + 0.58) / 4)
    # What validation loses again is not read.
    back = line._replace(validation=np.array([0.6, 0.95, 0.9]))
    assert robustness(back, 0.95) == pytest.approx(0.7)


@pytest.mark.slow
def test_heads_are_centred_directions_of_class_means(little_data):
    config = config_of("configs/merging/bed.py")
    bed = made_bed(config, little_data)
    module, base = bed.module, bed.base
    source = patterns(3, 3, 4)
    head = np.asarray(finetuning.head_of(config, base, source), float)
    arrays = source.arrays()
    found = np.asarray(finetuning.features(module, base, jnp.asarray(arrays["image"])), float)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    means = np.stack([found[arrays["label"] == c].mean(0) for c in range(3)])
    means -= means.mean(0)
    wanted = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(head[:3], wanted, atol=1e-3)
    assert not head[3].any()
    scores = finetuning.logits(jnp.asarray(found, jnp.float32), jnp.asarray(head, jnp.float32), 7.0)
    np.testing.assert_allclose(scores[:, :3], 7 * found @ head[:3].T, atol=1e-4)
    assert (np.asarray(scores[:, 3]) == finetuning.ABSENT).all()


def test_characters_are_shared_out_by_turns():
    names = "aAbBcCαβγ"
    source = data.ArraySource(
        np.zeros((9, 2, 2, 1), np.uint8), np.arange(9), class_names=tuple(names)
    )
    latin = tasks._every_second(source, ("Basic Latin",), first=1)
    assert [names[i] for i in latin] == ["A", "B", "C"]
    both = tasks._every_second(source, ("Basic Latin", "Greek and Coptic"), first=0)
    assert [names[i] for i in both] == ["a", "b", "c", "α", "γ"]
