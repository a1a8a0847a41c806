"""Novel classes in quick form, and how they are measured; `make claims` measures them in full."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from configs.metric import novel_glyphs
from experiments.common.class_parts import image_parts
from experiments.metric import growth, measures, methods, novel_classes
from experiments.ranges import checked_experiment
from rml.errors import UserError
from tests.system.two_steps import override

SMALL = {
    "classes.base": 6, "classes.validation": 4, "classes.novel": 4, "splits": 2,
    "batch.classes": 4, "batch.examples": 4, "train.batch_size": 16, "train.steps": 2,
    "train.checkpoint_every": 2, "optimizer.warmup_steps": 1, "tries.steps": 1,
    "model.widths": (2, 2), "model.features": 8, "head.features": 6, "evaluation.draws": 3,
    "growth.sizes": (8, 16),
    **{f"tries.{method}": ("",) for method in methods.METHODS},
    "tries.softmax": ("methods.softmax.smoothing=0.1",),
}  # fmt: skip


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_keeps_its_encoders(measure, tmp_path):
    metrics, holds = measure("configs/metric/novel_glyphs.py", SMALL)
    assert len(holds) == len(novel_classes.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert {metrics[f"tries_{method}"] for method in methods.METHODS} == {1}
    for claim in novel_classes.CLAIMS:
        assert claim.null in metrics
        if not claim.any_data:
            assert metrics[f"{claim.metric}_low"] <= metrics[claim.metric]
    splits = [
        json.loads((tmp_path / f"run/methods/split_{i}/summary.json").read_text())["metrics"]
        for i in (0, 1)
    ]
    place = "softmax_half_harmonic_trained"
    assert metrics[place] == pytest.approx(np.mean([own[place] for own in splits]))
    assert "triplet_half_harmonic_trained" not in metrics
    figures = {path.name for path in (tmp_path / "run/figures").glob("*.png")}
    assert figures == set(novel_classes.CAPTIONS)
    encoder = rml.load(tmp_path / "run/methods/split_1/methods/supcon")
    assert encoder(np.zeros((3, 28, 28, 1), np.uint8)).shape == (3, 6)


def small(**changes):
    return override(novel_glyphs.get_config(), SMALL | changes)


def test_splits_have_classes_of_their_own_and_share_none_within():
    parts = [image_parts(small(**{"classes.seed": seed})) for seed in (0, 1)]
    names = [{part: set(own.class_names) for part, own in one.items()} for one in parts]
    for own in names:
        assert own["base"] == own["held_out"]
        assert not own["base"] & own["novel"]
        assert not own["validation"] & (own["base"] | own["novel"])
    assert names[0]["novel"] != names[1]["novel"]


def by_loops(key, vectors, old, old_labels, novel, labels, shots):
    """Accuracies of one draw, from the support that the measure drew."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, old, novel)]
    order = np.lexsort((np.asarray(jax.random.uniform(key, labels.shape)), labels))
    support = np.concatenate([
        [i for i in order if labels[i] == c][: shots[c]] for c in range(len(shots))
    ])  # fmt: skip
    means = np.stack([unit[2][[i for i in support if labels[i] == c]].sum(0)
                      for c in range(len(shots))])  # fmt: skip
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    everything, trained = np.concatenate([unit[0], means]), len(vectors)
    queries = [i for i in range(len(labels)) if i not in support]
    disjoint = np.mean([np.argmax(means @ unit[2][i]) == labels[i] for i in queries])
    new = np.mean([np.argmax(everything @ unit[2][i]) == trained + labels[i] for i in queries])
    kept = np.mean([np.argmax(everything @ x) == y for x, y in zip(unit[1], old_labels,
                                                                  strict=True)])  # fmt: skip
    return disjoint, new, kept, 2 * new * kept / max(new + kept, 1e-9)


def test_accuracies_are_those_of_loops_over_examples():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((7, 5))
    labels, old_labels = np.repeat(np.arange(3), (6, 9, 7)), np.arange(20) % 4
    novel = centers[4 + labels] + 0.7 * rng.standard_normal((22, 5))
    old = centers[old_labels] + 0.7 * rng.standard_normal((20, 5))
    vectors = 3 * centers[:4] + 0.3 * rng.standard_normal((4, 5))
    shots = np.array([1, 4, 3])
    found = measures.novel_accuracies(
        jax.random.key(3), *(jnp.asarray(x) for x in (vectors, old, old_labels, novel, labels)),
        jnp.asarray(shots), classes=3, draws=5,
    )  # fmt: skip
    for i, key in enumerate(jax.random.split(jax.random.key(3), 5)):
        expected = by_loops(key, vectors, old, old_labels, novel, labels, shots)
        np.testing.assert_allclose([one[i] for one in found], expected, rtol=1e-6)
    assert 0 < found.harmonic.mean() < found.disjoint.mean() < 1
    assert len({float(x) for x in found.new}) > 1  # draws differ


def test_numbers_of_support_examples_leave_some_to_classify():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    found = measures.numbers_of_shots((1, 2), labels, 2)
    assert {name: own.tolist() for name, own in found.items()} == {
        "1shot": [1, 1], "2shot": [2, 2], "half": [2, 1],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"shots has 3, expected fewer than the 3 examples"):
        measures.numbers_of_shots((3,), labels, 2)
    with pytest.raises(UserError, match=r"shots has 1, expected fewer than the 0 examples"):
        measures.numbers_of_shots((), labels, 3)


def test_claims_compare_what_they_say():
    metrics = {}
    for i, method in enumerate(methods.METHODS):
        for j, place in enumerate(("1shot", "5shot")):
            metrics[f"{method}_{place}_disjoint"] = 0.01 * i**2 + 0.1 * j
            metrics[f"{method}_{place}_harmonic_means"] = 0.02 * i**2 + 0.1 * j
            if method in methods.VECTORS:
                metrics[f"{method}_{place}_harmonic_trained"] = 0.03 * i**2 + 0.1 * j
    ours, softmax, triplet, contrastive, supcon = (
        [*methods.METHODS].index(name) ** 2
        for name in ("normalized_softmax", "softmax", "triplet", "contrastive", "supcon")
    )
    found = novel_classes.differences(metrics)
    expected = {
        "disjoint_1shot_over_triplet": 0.01 * (ours - triplet),
        "disjoint_5shot_over_contrastive": 0.01 * (ours - contrastive),
        "softmax_disjoint_5shot_over_triplet": 0.01 * (softmax - triplet),
        "supcon_disjoint_1shot_over_softmax": 0.01 * (supcon - softmax),
        "joint_over_triplet": 0.03 * ours - 0.02 * triplet,
        "softmax_joint_over_contrastive": 0.03 * softmax - 0.02 * contrastive,
        "joint_trained_over_means": 0.01 * ours,
        "softmax_joint_trained_over_means": 0.01 * softmax,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_operations_of_class_vectors_grow_with_the_batch_and_of_pairs_with_its_square():
    config = small(**{"growth.sizes": (64, 128, 256), "head.features": 16})
    found = growth.exponents(growth.operations(config))
    for method in ("normalized_softmax", "cosface", "softmax"):
        assert found[f"exponent_{method}"] == pytest.approx(1, abs=0.1)
    for method in ("triplet", "contrastive", "supcon"):
        assert found[f"exponent_{method}"] > 1.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 12}, "train.batch_size is 12, expected .* 4 x 4 = 16"),
        ({"batch.examples": 1, "train.batch_size": 4}, r"batch\.examples is 1, expected a whole"),
        ({"methods.softmax.smoothing": 0.3}, r"methods\.softmax\.smoothing is 0\.3, which all of"),
        ({"tries.supcon": ("", "methods.supcon.temperature=0.2")}, "tries are .*equally many"),
        ({"evaluation.shots": (0,)}, "evaluation.shots is .* expected a whole number"),
    ],
)
def test_what_no_run_can_do_is_refused_before_images_are_opened(changes, message, monkeypatch):
    monkeypatch.setattr(novel_classes, "image_parts", lambda *_: pytest.fail("images are opened"))
    config = small(**changes)
    with pytest.raises(UserError, match=message):
        checked_experiment(config).run(config, None)


def test_unknown_methods_are_named():
    with pytest.raises(UserError, match="unknown method 'arcfaces'; did you mean 'arcface'"):
        methods.build_model(small(), "arcfaces")


def loss_of(method, **options):
    """Value of a method's loss of a batch of 2 classes with 4 examples each."""
    rng = np.random.default_rng(1)
    out = methods.Outputs(
        *(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, 3), (4, 3), (4,))),
        jnp.asarray(7.0),
    )
    config = novel_glyphs.get_config().methods[method]
    config.update(options)
    labels = jnp.repeat(jnp.asarray([2, 0]), 4)
    return float(methods.METHODS[method](config, out, labels, 4)), out, labels


def test_losses_of_examples_have_several_of_a_class_in_a_batch():
    config = small()
    parts = image_parts(config)
    for method in methods.METHODS:
        problem = methods.task(config, method, parts.__getitem__, lambda state: {})
        batches = iter(problem.batches())
        counts = [np.unique(next(batches)["label"], return_counts=True)[1] for _ in range(6)]
        whole = all(own.tolist() == [4, 4, 4, 4] for own in counts)
        assert whole == (method not in methods.VECTORS), method


def test_an_episode_has_the_first_half_of_each_class_as_its_support():
    value, out, _ = loss_of("prototypical")
    rows = np.asarray(out.embeddings).reshape(2, 4, 3)
    means = rows[:, :2].mean(1)
    logits = -np.sum((rows[:, 2:].reshape(4, 1, 3) - means) ** 2, -1) / 4.0
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert value == pytest.approx(-np.mean(log_p[np.arange(4), [0, 0, 1, 1]]), rel=1e-5)


def test_a_learned_scale_is_read_and_a_fixed_one_not_moved_by_it():
    fixed, out, labels = loss_of("normalized_softmax", scale=7.0)
    assert loss_of("learned_scale")[0] == pytest.approx(fixed, rel=1e-6)
    assert loss_of("normalized_softmax", scale=3.0)[0] != pytest.approx(fixed, rel=1e-2)
    assert loss_of("cosface")[0] > fixed
    logits = out.embeddings @ out.prototypes.T + out.bias
    expected = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), labels])
    assert loss_of("softmax", smoothing=0.0)[0] == pytest.approx(float(expected), rel=1e-5)
