"""aTLAS' recipe on a tiny bed of patterns; `make claims` measures one that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.merging import atlas, atlas_tasks, tasks
from experiments.merging.atlas_few import labelled, views
from experiments.merging.atlas_learning import Views, few_batches
from experiments.merging.fishers import draw_images
from experiments.merging.judging import Reading, differences, judged, over_targets
from experiments.merging.tasks import Images
from rml.errors import UserError
from rml.ops import t_interval
from tests.claims.bed_of_patterns import (
    config_of,
    made_bed,
    patterns,
    put_in,
    put_in_plain,
    small_run,
)

RECIPE = {
    "search.tries": 2, "methods.adamerging.steps": 2, "methods.adamerging.batch_size": 2,
    "methods.adamerging.learning_rates": (0.01,), "addition.steps": 2, "addition.batch_size": 2,
    "addition.rates": (0.1,), "addition.looked_at": 4, "negation.targets": ("a",),
    "negation.steps": 2, "negation.batch_size": 4, "negation.rates": (0.1,),
    "few.targets": ("b",), "few.shots": (1,), "few.steps": 2, "few.batch_size": 4,
    "few.probe_steps": 2, "few.rates.atlas": (0.1,), "few.rates.lora": (0.1,),
    "few.rates.full": (0.1,), "few.rates.probe": (0.1,), "test_time.steps": 2,
    "negation.multiples": 3, "parts.counts": (3,), "parts.steps": 2,
    "test_time.batch_size": 4, "test_time.rates": (0.1,), "parts.target": "b", "parts.count": 2,
}  # fmt: skip


@pytest.fixture
def bed(monkeypatch):
    made = put_in(monkeypatch)
    put_in_plain(monkeypatch)
    return made_bed(config_of("configs/merging/atlas.py", **RECIPE), made)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(bed, monkeypatch, tmp_path):
    found = small_run(atlas, bed, monkeypatch, tmp_path / "run")
    # Two vectors, and of each a bias, a kernel and two layers.
    assert found["coefficients_added"] == 8
    assert found["coefficients_parts"] == 8
    assert found["parameters_lora"] == 2 * (8 + 8)
    assert found["parameters_lora_over_parts"] == 4
    assert {"parts_by_3_share", "parts_by_3_all"} <= set(found)
    for way in ("atlas", "shuffled"):
        assert found[f"changed_isotropic_over_{way}"] == pytest.approx(
            found["changed_isotropic"] - found[f"changed_{way}"]
        )


def test_draws_are_of_all_classes_though_images_are_stored_class_by_class_in_turns():
    source = patterns(0, 4, 8)
    made = {name: tasks.ImageTask(*[source] * 3) for name in ("a", "b")}
    for seed in range(3):
        images = tasks.joined(made, "train", 16, seed)  # every second would be of two classes
        assert np.asarray(images.task).tolist() == [0] * 16 + [1] * 16
        assert set(np.asarray(images.label)[:16]) == {0, 1, 2, 3}
        drawn = draw_images(source, 16, seed)
        assert len(np.unique(drawn, axis=0)) == 16
        assert set(source.labels[rows_of(drawn, source)]) == {0, 1, 2, 3}
    assert len(tasks.joined(made, "test", 100).label) == 64
    more = draw_images(source, 40, 0)  # some are repeated
    assert len(more) == 40
    assert len(np.unique(more, axis=0)) == 32


def test_another_seed_draws_other_images_and_more_of_them_are_those_and_others():
    source = patterns(0, 4, 8)
    few, more = (tasks.few_of_each(source, count, 3) for count in (2, 3))
    assert np.bincount(few.labels).tolist() == [2] * 4
    rows = [set(rows_of(own.arrays()["image"], source)) for own in (few, more)]
    assert rows[0] < rows[1]
    assert rows[0] != set(rows_of(tasks.few_of_each(source, 2, 4).arrays()["image"], source))
    one, other = (draw_images(source, 16, seed) for seed in (0, 1))
    assert not np.array_equal(one, other)


def rows_of(images, source):
    """Which of a source's images some are."""
    known = [image.tobytes() for image in source.arrays()["image"]]
    return [known.index(image.tobytes()) for image in images]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negation.targets": ("a", "c")}, "unknown task of negation.targets 'c'"),
        ({"negation.targets": ()}, r"negation.targets is \(\), expected one task or more"),
        ({"few.targets": ("c",)}, "unknown task of few.targets 'c'"),
        ({"few.targets": ("b", "b")}, "each once"),
        ({"parts.target": "c"}, "unknown task of parts.target 'c'; expected one of: a, b"),
        ({"few.shots": (8, 16)}, r"few.shots is \(8, 16\), expected some of up to 4 images"),
        ({"few.shots": ()}, r"few.shots is \(\), expected some"),
    ],
)
def test_targets_that_are_not_there_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        atlas.run(config_of("configs/merging/atlas.py", **RECIPE | changes), None)


def test_batches_against_a_task_are_half_its_own_and_count_below_zero(bed):
    task = jnp.asarray([0] * 5 + [1] * 7)
    images = Images(jnp.zeros((12, 8, 8, 1), jnp.uint8), jnp.arange(12), task)
    found = atlas_tasks._against(bed.config, images, 1)
    assert found.weights.shape == (2, 4)
    np.testing.assert_array_equal(found.weights, [[-1, -1, 1, 1]] * 2)
    np.testing.assert_array_equal(found.images.task, [[1, 1, 0, 0]] * 2)


def test_the_worst_multiple_keeps_the_others(bed):
    part = judged(bed, "validation")
    right = {
        0: np.array([1, 1, 1, 1]), 1: np.array([1, 0, 1, 1]), 2: np.array([0, 0, 1, 1]),
        3: np.array([0, 0, 0, 1]),
    }  # fmt: skip
    held = Images(part.images.image[:4], part.images.label[:4], jnp.asarray([0, 0, 1, 1]))
    bed.config.negation.control = 0.75
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas_tasks, "_right", lambda bed, params, _: right[int(params)])
        one = bed._replace(base=jnp.float32(0))
        found = atlas_tasks._worst(
            bed.config, one, [jnp.float32(1)], np.arange(1, 4, dtype=np.float32), held, 0
        )
    # The third loses half of the other task.
    assert float(found) == 2


@pytest.mark.slow
def test_a_pool_of_trusted_images_alone_is_refused(bed):
    part = judged(bed.alone("b"), "test")
    one = jax.tree.map(lambda x: x[:1], part.images)
    with pytest.raises(UserError, match="all 1 images of b are trusted"):
        views(bed.config, bed.alone("b"), one)


def test_exchanged_labels_are_trusted_where_own_ones_are():
    trusted = jnp.asarray([[True, False, False, False], [True, True, False, False]])
    given = Views(None, None, jnp.arange(8).reshape(2, 4), trusted)
    ways = labelled(given, 0)
    np.testing.assert_array_equal(ways["exchanged"].trusted, trusted)
    moved = np.asarray(ways["exchanged"].labels)
    assert (moved != given.labels).any()
    np.testing.assert_array_equal(np.sort(moved, axis=None), np.arange(8))
    assert ways["literal"].trusted.all()
    np.testing.assert_array_equal(ways["literal"].labels, given.labels)
    assert ways["ufm"] is given


def test_answers_that_other_vectors_change_are_counted(bed):
    part = judged(bed, "test")
    zero = jnp.zeros(2)
    assert atlas_tasks.changed(bed, part, zero) == 0
    one = jnp.ones(2)
    assert 0 < atlas_tasks.changed(bed, part, one) <= 1
    nothing = jax.tree.map(jnp.zeros_like, bed.experts)
    assert atlas_tasks.changed(bed, part, one, vectors=nothing) == 0


def test_readings_of_the_same_images_are_averaged_over_numbers_of_labels():
    rng = np.random.default_rng(0)

    def readings():
        return {
            way: [Reading(rng.normal(size=n), rng.random(2)) for n in (6, 11)]
            for way in ("atlas", "probe")
        }

    def compared(shots):
        return differences("few", atlas.of_few(shots), {"gain": ("atlas", "probe")})

    one, other, more = readings(), readings(), readings()
    alone = compared({2: one, 8: more})
    assert compared({1: one, 2: one, 8: more}) == pytest.approx(alone)
    found = compared({2: one, 4: other, 8: more})
    for way in one:
        both = [own.normalised.mean() for own in one[way] + other[way]]
        assert found[f"few_{way}"] == pytest.approx(np.mean(both))
    assert found["gain"] == pytest.approx(found["few_atlas"] - found["few_probe"])
    (first, second), (third, fourth) = (atlas.of_few({2: one, 4: other})[way] for way in one)
    np.testing.assert_allclose(
        second.accuracy, (one["atlas"][1].accuracy + other["atlas"][1].accuracy) / 2
    )
    gains = over_targets(
        [first.normalised - third.normalised, second.normalised - fourth.normalised]
    )
    assert found["gain_high"] == pytest.approx(float(t_interval(gains).high))


def test_batches_of_few_images_hold_all_of_them(bed):
    images = Images(
        jax.random.randint(jax.random.key(0), (3, 8, 8, 1), 0, 255).astype(jnp.uint8),
        jnp.arange(3), jnp.zeros(3, jnp.int32),
    )  # fmt: skip
    found = few_batches(bed.config, images, steps=2, batch_size=4)
    assert found.images.image.shape == (2, 4, 8, 8, 1)
    rows = np.asarray(found.images.label)
    for i in (0, 3):  # in passes
        assert sorted(rows.reshape(-1)[i : i + 3]) == [0, 1, 2]
    np.testing.assert_allclose(found.images.image, np.asarray(images.image)[rows] / 255, atol=1e-6)
