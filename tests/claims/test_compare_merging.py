"""The ranking of merging on a tiny bed of patterns; `make claims` measures one that learns."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.merging import compare, compare_figures, compare_ways, fishers, grams
from experiments.merging.judging import Part, judged, of_hits, read
from experiments.merging.ranking import on_their_own
from experiments.merging.tasks import Images
from rml.ops import trees
from tests.claims.bed_of_patterns import config_of, made_bed, put_in, put_in_plain, small_run

LEARNED = {"steps": 2, "batch_size": 2}
RECIPE = {"search.tries": 2, "fisher.examples": 4, "fisher.classes": 2} | {
    f"{part}.{key}": value
    for part in ("methods.adamerging", "mask", "addition") for key, value in LEARNED.items()
} | {
    "methods.adamerging.learning_rates": (0.01, 0.1), "mask.learning_rates": (0.01,),
    "addition.rates": (0.01, 0.03), "router.most": 8, "router.epochs": 2, "router.batch_size": 6,
}  # fmt: skip


@pytest.mark.slow
def test_a_small_run_ranks_every_way_and_counts_its_cost(monkeypatch, tmp_path):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    config = config_of("configs/merging/compare.py", **RECIPE)
    bed = made_bed(config, made)
    clock = itertools.count(step=100)  # so many seconds between two looks
    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = small_run(compare, bed, monkeypatch, tmp_path / "run")
    # 16 pixels to 8 numbers, then two layers of 8 by 8: twice the multiplications.
    forward = 2 * (16 * 8 + 2 * 8 * 8)
    assert compare_ways.forward_flops(config, bed) == forward
    images = len(made["a"].validation.arrays()["label"]) * 2
    passes = {
        "average": 0, "ties": 2 * images,
        "fisher": 2 * images + 2 * fishers.fisher_flops(bed, examples=4, classes=2) / forward,
        # Of each of 4 images of 2 tasks a pass, and products of 16 by 16 and twice 8 by 8 numbers.
        "regmean": 2 * images + 2 * 4 * (1 + (16 * 16 + 2 * 8 * 8) / (16 * 8 + 2 * 8 * 8)),
        "adamerging": 4 * (3 * 2 * 2 * 2 + images),  # of two starts by two rates
        "atlas": 2 * (3 * 2 * 2 * 2 + images / 2),
        "concrete": 2 * images + 3 * 2 * 2 * 2 + images,
        "masked": 6 * 2 * 2 * 2 + 4 * (3 * 2 * 2 * 2 + images),
        "leap": 6 * 2 * 2 * 2 + 4 * (3 * 2 * 2 * 2 + images),
    }  # fmt: skip
    # It has the seconds of the search as well as its operations.
    assert (found["seconds_arithmetic"], found["seconds_concrete"]) == (100.0, 200.0)
    for name, count in passes.items():
        assert found[f"gflop_{name}"] == pytest.approx(count * forward / 1e9), name
    # Features of 8 to 16 twice, then 2 tasks; 12 of 16 training images fill batches, twice.
    router = 2 * (8 * 16 + 16 * 16 + 16 * 2) * 2 * (3 * 12 + images)
    learned = 2 * images + 16 + images
    assert found["gflop_twin"] == pytest.approx((learned * forward + router) / 1e9)
    copy = trees.count_bytes(bed.base)
    # Rank 1 of all matrices for two experts, biases whole, and a router with its statistics.
    rank = (16 + 8) + 2 * (8 + 8) + 8
    router = (8 * 16 + 16) + (16 * 16 + 16) + (16 * 2 + 2) + 2 * 4 * 16
    assert found["bytes_twin"] == copy + 4 * (2 * rank + router)
    assert found["bytes_ensemble"] == len(bed.tasks) * copy
    assert found["bytes_ties"] == copy
    assert set(compare_figures.NAMES) <= {name.partition("_")[2] for name in found}


def test_experts_are_read_on_their_own_tasks(monkeypatch):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    config = config_of("configs/merging/compare.py", **RECIPE)
    bed = made_bed(config, made)
    part = judged(bed, "validation")
    task = np.asarray(part.images.task)
    rights = [np.arange(len(task)) % 3 == i for i in range(2)]
    own = on_their_own(part, [of_hits(part, right) for right in rights])
    wanted = of_hits(part, np.where(task == 0, *rights))
    assert np.array_equal(own.normalised, wanted.normalised)
    assert np.array_equal(own.accuracy, wanted.accuracy)
    # Normalised by themselves experts are at 1, on average over tasks.
    each = [read(bed, part, trees.take_tree(bed.experts, i)) for i in range(2)]
    assert on_their_own(part, each).normalised.mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.slow
def test_matrices_are_of_experts_own_images_and_cross_as_a_whole(monkeypatch):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    config = config_of("configs/merging/compare.py", **RECIPE)
    bed = made_bed(config, made)
    # As many as there are, and some twice where more are asked for.
    for examples in (16, 20):
        found = grams.grams_of(bed, [own.train for own in made.values()], examples=examples)
        for i, own in enumerate(made.values()):
            images = fishers.draw_images(own.train, examples, config.seed)
            assert len(np.unique(images, axis=0)) == 16
            x = images.reshape(examples, -1)[:, ::4].astype(np.float64) / 255
            np.testing.assert_allclose(found["patches.kernel"][i], x.T @ x / examples, rtol=1e-5)
    other = grams.crossed(found)
    for name, gram in found.items():
        assert np.array_equal(other[name], gram[::-1])
        assert not np.array_equal(other[name], gram)


def test_noise_has_the_images_places_and_no_class():
    config = config_of("configs/merging/compare.py", **RECIPE)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
    part = Part(Images(jax.numpy.asarray(images), np.arange(6), np.zeros(6, int)), None, None)
    drawn = compare_ways.noise(config, part)
    assert drawn.image.shape == images.shape
    assert drawn.image.dtype == np.uint8
    assert not np.array_equal(drawn.image, images)
    assert np.array_equal(drawn.label, part.images.label)
    assert np.array_equal(drawn.image, compare_ways.noise(config, part).image)
