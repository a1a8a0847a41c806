"""Claims of deep kernel machines in quick form; `make claims` measures them in full."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from configs.kernels import (
    classification_conv_digits,
    classification_digits,
    classification_fashion,
    classification_mnist5k,
    convolution_digits,
    gaussianity_diabetes,
    regression_tables,
    steps_friedman,
)
from experiments.common.images import open_images
from experiments.kernels import (
    classification,
    convolution,
    gaussianity,
    image_machines,
    learning,
    regression,
    regression_machines,
    steps,
    steps_courses,
)
from experiments.ranges import check_ranges
from rml import kernels
from rml.data import tables
from rml.errors import UserError
from rml.training import RunDirectory
from tests.system.two_steps import override

WIDTH = {
    "data.points": 5, "model.widths": (1.0, 1e6), "sampler.copies": (2, 32),
    "sampler.chains": 3, "sampler.warmup": 200, "sampler.draws": 200,
}  # fmt: skip


@pytest.mark.slow
def test_wide_deep_gps_approach_the_optimum(measure):
    pytest.importorskip("blackjax")
    metrics, holds = measure("configs/kernels/width_diabetes.py", WIDTH)
    assert all(holds.values()), metrics
    assert metrics["distance_of_widest_mean"] < metrics["distance_of_nngp"], metrics


@pytest.mark.slow
def test_learned_gram_matrices_classify_digits_better(measure):
    changes = {
        "train.steps": 130, "train.eval_every": 0, "train.checkpoint_every": 0,
        "train.batch_size": 100, "optimizer.warmup_steps": 20, "model.inducing": 30,
        "model.depth": 1, "model.samples": 4, "model.widths": (10.0, 1e6), "tries.rates": (0.03,),
        "model.width": 1e6,  # with this one neither trains
        "tries.sparse_gp_rates": (0.015, 0.03),
    }  # fmt: skip
    metrics, holds = measure("configs/kernels/classification_digits.py", changes)
    assert holds["log_likelihood_gain", ">="], metrics
    assert metrics["dkm_accuracy"] > 0.9, metrics
    assert metrics["dkm_width"] == 10.0, metrics  # the other one's Gram matrices are not learned
    assert metrics["dkm_validation"] > metrics["sparse_gp_validation"]


@pytest.mark.slow
def test_a_convolutional_machine_learns_digits(measure):
    changes = {
        "train.steps": 100, "train.batch_size": 40, "train.log_every": 50,
        "train.checkpoint_every": 0, "model.inducing": 24, "model.widths": (10.0,),
        "tries.rates": (0.05,), "tries.sparse_gp_rates": (0.05,),
    }  # fmt: skip
    metrics, _ = measure("configs/kernels/classification_conv_digits.py", changes)
    assert metrics["dkm_accuracy"] > 0.2, metrics
    assert metrics["dkm_log_likelihood"] > np.log(0.1) + 0.1, metrics


def test_inducing_patches_are_different_ones_of_the_training_images(tfds_data_dir):
    config = classification_conv_digits.get_config()
    patches, images = image_machines.first_points(config, 3)
    assert patches.shape == (48, 3, 3, 1)
    assert images.shape == (200, 8, 8, 1)
    assert images.min() == -1
    assert images.max() == 1
    rows = patches.reshape(48, -1)
    assert len(np.unique(rows, axis=0)) == 48
    assert (np.diff(rows.mean(1)) >= -1e-6).all()
    windows = np.lib.stride_tricks.sliding_window_view(images[..., 0], (3, 3), (1, 2))
    assert {tuple(row) for row in rows} <= {tuple(row) for row in windows.reshape(-1, 9)}
    other = image_machines.first_points(config, 4)
    assert not np.array_equal(other.inducing, patches)
    assert not np.array_equal(other.images, images)
    config.model.inducing = 1000  # of so many some would be drawn twice
    many = image_machines.first_points(config, 3).inducing
    assert len(np.unique(many.reshape(1000, -1), axis=0)) == 1000
    config.model.inducing, config.data.train = 48, "train[:1]"
    with pytest.raises(UserError, match=r"model.inducing is 48, but 1 training images of digits"):
        image_machines.first_points(config, 3)


FEW = {
    "data.sizes": (30, 15), "data.validation": 20, "data.test_images": 25, "model.depths": (1, 2),
    "model.noises": (1e-3, 1.0),
}  # fmt: skip


@pytest.mark.slow
def test_networks_are_classified_by_the_best_of_their_options(measure):
    metrics, holds = measure("configs/kernels/convolution_digits.py", FEW)
    assert len(holds) == len(convolution.CLAIMS) == 3
    config = override(convolution_digits.get_config(), FEW)
    found = (open_images(config, part, labelled=True).arrays() for part in ("train", "test"))
    (x, y), valid, test = convolution.drawn(config, *found)
    for n in (15, 30):
        tried = {}
        rows = [part.reshape(len(part), -1) for part in (x[:n], valid[0], test[0])]
        g = kernels.input_gram(jnp.asarray(np.concatenate(rows)))
        grams = np.float64(kernels.nngp_grams(g, kernel=kernels.relu, depth=2))
        for depth, k in enumerate(grams, 1):
            for noise in (1e-3, 1.0):
                own = noise * np.diagonal(k)[:n].mean() * np.eye(n)
                mean = k[n:, :n] @ np.linalg.solve(k[:n, :n] + own, np.eye(10)[y[:n]] - 0.1)
                right = np.argmax(mean, 1) == np.concatenate([valid[1], test[1]])
                tried[depth, noise] = float(right[:20].mean()), float(right[20:].mean())
        best = max(tried, key=lambda at: tried[at][0])
        assert (metrics[f"nngp_depth_{n}"], metrics[f"nngp_noise_{n}"]) == best
        own = metrics[f"nngp_validation_{n}"], metrics[f"nngp_accuracy_{n}"]
        assert own == pytest.approx(tried[best])
    for name, (better, worse) in convolution.GAINS.items():
        gain = metrics[f"{better}_accuracy_30"] - metrics[f"{worse}_accuracy_30"]
        assert metrics[name] == pytest.approx(gain)
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]


@pytest.mark.slow
def test_kernels_of_networks_are_those_of_their_kind():
    config = convolution_digits.get_config()
    x, other = (
        jnp.asarray(np.random.default_rng(i).random((n, 4, 4, 1))) for i, n in ((0, 2), (1, 3))
    )
    config.model.depths = (2, 1)
    given = dict(kernel=kernels.relu, depth=(2, 1), size=3)
    for method, pool in ((convolution.POOLED, True), (convolution.FLAT, False)):
        k, ti = convolution.compute(config, method, x, other)
        np.testing.assert_allclose(k, kernels.conv_nngp(x, x, pool=pool, **given), rtol=1e-5)
        np.testing.assert_allclose(ti, kernels.conv_nngp(other, x, pool=pool, **given), rtol=1e-5)


def test_networks_are_judged_on_images_that_change_places_with_all_others(tfds_data_dir):
    config = override(convolution_digits.get_config(), FEW)
    found = [open_images(config, part, labelled=True).arrays() for part in ("train", "test")]
    parts = convolution.drawn(config, *found)
    assert [len(x) for x, _ in parts] == [len(y) for _, y in parts] == [30, 20, 25]
    rows = [{tuple(image.reshape(-1)) for image in x} for x, _ in parts]
    assert not rows[0] & rows[1]
    given = np.asarray(image_machines.about_zero(found[0]["image"])).reshape(-1, 64)
    assert rows[0] | rows[1] <= {tuple(image) for image in given}
    config.data.shuffled = True
    moved = convolution.drawn(config, *found)
    before, after = (
        np.concatenate([x.reshape(len(x), -1) for x, _ in own]).T for own in (parts, moved)
    )
    assert not np.array_equal(before, after)
    assert sorted(map(tuple, before)) == sorted(map(tuple, after))  # pixels, in all images alike
    for (_, labels), (_, same) in zip(parts, moved, strict=True):
        np.testing.assert_array_equal(labels, same)
    config.data.test_images = 1079
    message = r"data.test, 'train\[50%:\]\+test' of digits, has 1078 images, .* 1079"
    with pytest.raises(UserError, match=message):
        convolution.drawn(config, *found)


@pytest.mark.parametrize(
    "file",
    [
        classification_conv_digits, classification_digits, classification_mnist5k,
        classification_fashion, steps_friedman,
    ],
)  # fmt: skip
def test_the_baseline_has_as_many_tries_as_the_machine(file):
    config = file.get_config()
    recipe = steps if file is steps_friedman else classification
    counts = recipe.tries(config)
    assert len(counts) > 1
    assert len(set(counts.values())) == 1
    assert min(counts.values()) > 1
    config.model.widths = config.model.widths[1:]
    with pytest.raises(UserError, match=r"(noises|rates) has \d values, expected \d as pairs of"):
        recipe.tries(config)


@pytest.mark.parametrize("file", [classification_digits, classification_mnist5k])
@pytest.mark.slow
def test_tries_are_judged_on_images_they_do_not_train_on(file, tfds_data_dir):
    config = file.get_config()
    config.data.domains = {"train": ("a",), "test": ("b",)}
    own = classification.on_validation(config)
    assert own.data.domains.to_dict() == {"train": ("a",), "test": ("a",)}
    split, config.data.test = config.data.test, config.data.train
    classification.check_tries(config)  # by others
    config.data.test = split
    for each in (config, own):
        del each.data.domains
    whole, train, judged = (
        open_images(given, part).arrays()["image"]
        for given, part in ((config, "train"), (own, "train"), (own, "test"))
    )
    assert (len(whole), len(train)) == (config.data.total, own.data.total)
    assert len(judged) == len(whole) - len(train) == round(len(whole) / 4)
    np.testing.assert_array_equal(np.concatenate([train, judged]), whole)
    classification.check_numbers(config)
    classification.check_tries(config)


# Of 1,438 training images of digits three quarters are 1,078.
FEWER = {"data.train": "train[:1000]", "data.test": "train[1000:]", "data.total": 1000}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train": "train[:400]"}, r"^data\.total is 1438, expected 400"),
        ({"tries.data.total": 1079}, r"^tries\.data\.total is 1079, expected 1078"),
        ({"model.classes": 5}, r"^model\.classes is 5, expected 10, .* classes of digits"),
        (FEWER, r"data\.train is 'train\[:75%\]', expected a part .*\[:1000\]', .* lacks 78 "),
        (
            FEWER | {"tries.data.train": "train[:900]", "tries.data.total": 900},
            r"data\.test is 'train\[75%:\]', expected a part .*'train\[:1000\]', .* lacks 360 ",
        ),
        ({"data.test": "train[1400:]"}, r"data\.test, 'train\[1400:\]', which has 38 of them"),
        ({"data.test": "all"}, "other images than data.test, 'all', which has 360 of them"),
        (
            {"tries.data.test": "train[1000:]"},
            r"is 'train\[1000:\]', expected other images than tries\.data\.train, .* has 78 ",
        ),
    ],
)
def test_images_of_tries_are_training_images_of_a_known_number(changes, message, tfds_data_dir):
    config = override(classification_digits.get_config(), changes)
    with pytest.raises(UserError, match=message):
        classification.run(config, None)


def test_validation_images_choose_the_options_of_each_method(tmp_path, monkeypatch):
    config = classification_digits.get_config()
    wanted = {"dkm": (30.0, 0.03), "sparse_gp": (config.model.width, 0.005)}
    config.model.widths, config.tries.rates = (3.0, 10.0, 30.0), (0.01, 0.03)
    config.tries.sparse_gp_rates = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)

    def judge(own, params):
        method, own_config = params
        assert own is own_config
        assert own.data.test == config.tries.data.test
        width, rate = wanted[method]
        if own.optimizer.learning_rate == 0.01:
            return {"log_likelihood": np.nan}
        far = np.log(own.model.width / width) ** 2 + np.log(own.optimizer.learning_rate / rate) ** 2
        return {"log_likelihood": -1 - far}

    def many(task_of, configs):
        return [(task_of.keywords["method"], own) for own in configs]

    def unstack(state, i):
        return SimpleNamespace(params=state[i])

    monkeypatch.setattr(classification, "judge", judge)
    monkeypatch.setattr(classification, "many", many)
    monkeypatch.setattr(classification, "train_on_mesh", lambda config, run, task, shown: task)
    monkeypatch.setattr(classification, "on_one_device", lambda state: state)
    monkeypatch.setattr(classification, "unstack", unstack)
    run = RunDirectory(tmp_path / "run", {})
    configs, metrics = classification.chosen(config, run)
    run.close()
    for method, options in wanted.items():
        own = configs[method]
        assert (own.model.width, own.optimizer.learning_rate) == options
        assert own.data == config.data
    assert metrics == {
        "dkm_validation": -1, "dkm_width": 30, "dkm_width_at_edge": 1, "dkm_learning_rate": 0.03,
        "sparse_gp_validation": -1, "sparse_gp_learning_rate": 0.005,
        "sparse_gp_learning_rate_at_edge": 1,
    }  # fmt: skip


def test_gradients_are_counted_until_a_goal():
    course = steps_courses.Course(np.array([1, 3, 4, 9]), np.array([-5.0, -2.0, -1.5, -1.4]), None)
    assert steps_courses.needed(course, -1.5) == 4
    assert steps_courses.needed(course, -4.0) == 3
    assert steps_courses.needed(course, -1.0) == 9


def test_a_course_that_never_comes_near_counts_more_gradients_than_the_claim_allows():
    config, fewest = steps_friedman.get_config(), steps.RANGES["train.steps"].low
    gradients = 1 + np.arange(fewest + 1)  # a step takes one at least
    course = steps_courses.Course(gradients, np.full(len(gradients), -2.0), None)
    assert not steps.CLAIMS[0].meets(float(steps_courses.needed(course, -1.0)))
    config.train.steps = 14
    with pytest.raises(UserError, match=r"train\.steps is 14, expected a whole number of at least"):
        check_ranges(config, steps.RANGES)


@pytest.mark.slow
def test_few_steps_from_the_kernels_go_further_than_from_factors(measure):
    metrics, holds = measure("configs/kernels/steps_friedman.py", {
        "data.sizes": (40, 80), "data.test": 100, "data.validation": 90, "train.steps": 8,
        "train.shuffled_steps": 4, "model.points": 40, "model.widths": (3.0, 100.0),
        "model.noises": (0.05, 0.2), "model.nngp_noises": (0.02, 0.05, 0.1, 0.2),
    })  # fmt: skip
    assert len(holds) == len(steps.CLAIMS)
    for n in (40, 80):
        assert metrics[f"gradients_relative_{n}"] < metrics[f"gradients_factors_{n}"], metrics
        assert metrics[f"objective_relative_{n}"] > metrics[f"objective_factors_{n}"]
    assert metrics["gradients_most"] == metrics["gradients_relative_80"]
    assert metrics["gradients_most_factors"] == metrics["gradients_factors_80"]
    gain = metrics["dkm_log_likelihood_80"] - metrics["nngp_log_likelihood_80"]
    assert metrics["log_likelihood_gain"] == pytest.approx(gain)
    assert metrics["log_likelihood_gain"] > metrics["log_likelihood_gain_shuffled"]
    tried = {
        (width, noise): metrics[f"validation_width_{width:g}_noise_{noise:g}"]
        for width in (3.0, 100.0) for noise in (0.05, 0.2)
    }  # fmt: skip
    assert (metrics["width"], metrics["noise"]) == max(tried, key=tried.get)
    assert len(set(tried.values())) == 4
    tried = {s: metrics[f"validation_nngp_noise_{s:g}"] for s in (0.02, 0.05, 0.1, 0.2)}
    assert metrics["nngp_noise"] == max(tried, key=tried.get)
    assert len(set(tried.values())) == 4


def test_machine_and_nngp_are_measured_with_what_validation_points_choose_of_each(monkeypatch):
    config = steps_friedman.get_config()
    config.data.update(dict(sizes=(20, 30), validation=7, test=9))
    config.model.update(dict(points=12, noise=0.5, widths=(3.0, 30.0, 300.0), noises=(0.02, 0.2)))
    config.model.nngp_noises = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    measured, fits = [], []

    def fitted(own, way, x, y, *, steps=None):
        fits.append((len(x), own.model.width, own.model.noise))
        return steps_courses.Course(np.array([1]), np.array([-1.0]), "learned")

    def tested(own, raw, x, y, points):
        given = raw, own.model.width, own.model.noise, len(x)
        if len(points[0]) == 9:
            measured.append(given)
            return 0.0
        assert (len(points[0]), len(points[1]), len(x), len(y)) == (7, 7, 12, 12)
        # Validation points like the machine's middle ν and larger noise, and the NNGP's 0.08.
        best = {"learned": (30.0, 0.2), None: (own.model.width, 0.08)}[raw]
        return -float(np.log(np.divide(given[1:3], best)) @ np.log(np.divide(given[1:3], best)))

    monkeypatch.setattr(steps, "fitted", fitted)
    monkeypatch.setattr(steps, "tested", tested)
    monkeypatch.setattr(steps, "draw", lambda *_: None)
    metrics = steps.run(config, None)
    assert (metrics["width"], metrics["noise"], metrics["nngp_noise"]) == (30.0, 0.2, 0.08)
    assert (metrics["width_at_edge"], metrics["nngp_noise_at_edge"]) == (0, 0)
    learned = [given for given in measured if given[0]]
    assert learned == [("learned", 30.0, 0.2, n) for n in (20, 30, 30)]
    assert [given[2:] for given in measured if not given[0]] == [(0.08, 20), (0.08, 30)]
    assert sorted(fits[:6]) == [(12, w, s) for w in (3.0, 30.0, 300.0) for s in (0.02, 0.2)]
    assert set(fits[6:]) == {(n, 30.0, 0.2) for n in (20, 30)}


@pytest.mark.slow
def test_both_ways_start_at_the_nngp_and_their_objectives_agree():
    config = steps_friedman.get_config()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((12, 3)), jnp.float32)
    y = jnp.sin(x.sum(1, keepdims=True))
    given = {
        way: steps_courses.fitted(config, way, x, y, steps=0)
        for way in (steps_courses.RELATIVE, "factors")
    }
    first, second = (own.objective for own in given.values())
    np.testing.assert_allclose(first, second, rtol=1e-3)
    k = kernels.nngp_grams(kernels.input_gram(x), kernel=kernels.squared_exponential, depth=3)[-1]
    wanted = kernels.log_marginal_likelihood(k, y, noise=0.05) / 12
    np.testing.assert_allclose(first, [wanted], rtol=1e-4)
    assert given["factors"].gradients.tolist() == [1]


def test_other_draws_of_as_many_points_may_have_less_error():
    assert learning.others(np.array([1.0, 0.5, 3.0, 1.5])) == 0.5
    assert learning.others(np.array([1.0, 2.0])) == 2.0


@pytest.mark.slow
def test_the_interval_of_a_gain_is_corrected_for_examples_that_splits_share(tmp_path, monkeypatch):
    config = regression_tables.get_config()
    config.data.splits, config.model.widths = 3, (1.0, 1e6)
    config.optimizer.rates, config.optimizer.nngp_rates = (0.02, 0.05), (0.01, 0.02, 0.03, 0.05)
    config.model.inducing, config.model.depth, config.train.steps = 5, 1, 3
    tried, drawn = [], []

    def try_all(*args):
        found = kept(*args)
        found.valid[0, 0] = -np.inf  # the first split's choice is not the first option
        tried.append(found)
        return found

    monkeypatch.setattr(
        regression, "draw_correlations", lambda path, config, machine, order: drawn.append(machine)
    )

    kept = regression_machines.try_all
    monkeypatch.setattr(regression, "try_all", try_all)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 2)), rng.standard_normal((50, 1))
    run = RunDirectory(tmp_path / "run", {})
    metrics = regression.run_tables(config, run, {"toy": table})
    run.close()
    dkm, nngp = (own.of(own.best(range(4)))[0] for own in tried)
    assert metrics["toy_gain"] == pytest.approx((dkm - nngp).mean())
    half = 4.302653 * (dkm - nngp).std(ddof=1) * np.sqrt(1 / 3 + 10 / 40)
    assert half > 0
    assert metrics["toy_gain_high"] - metrics["toy_gain"] == pytest.approx(half, rel=1e-5)
    assert metrics["toy_gain"] - metrics["toy_gain_low"] == pytest.approx(half, rel=1e-5)
    chosen = tried[0].machines[tried[0].best(range(4))[0]]
    np.testing.assert_array_equal(drawn[1].raw, chosen.raw[0])
    np.testing.assert_array_equal(drawn[0].raw, np.zeros_like(chosen.raw[0]))


def test_a_run_shorter_than_its_log_has_no_curve_of_losses(tmp_path):
    run = RunDirectory(tmp_path / "run", {})
    lines = {
        "dkm": '{"step": 2, "time": 1.0, "train/loss": 1.5}\n',
        "sparse_gp": '{"step": 2, "time": 1.0, "seconds": 1.0}\n',
    }
    for method in classification.METHODS:
        inner = run.of_method(method)
        classification.draw_losses(run)
        assert not run.figure("loss.png").exists()
        inner.close()
    for method, line in lines.items():
        (run.path / "methods" / method / "metrics.jsonl").write_text(line)
    classification.draw_losses(run)  # one method logged once
    assert run.figure("loss.png").exists()
    run.close()


def test_mardias_kurtosis_is_a_gaussians_of_gaussian_units_only():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 3))
    normal = np.einsum("nm,cdmw->cdnw", mixing, rng.standard_normal((4, 500, 3, 20)))
    white = gaussianity.whitened(normal)
    moments = np.einsum("cdnw,cdmw->nm", white, white) / (4 * 500 * 20)
    np.testing.assert_allclose(moments, np.eye(3), atol=1e-10)
    assert np.abs(gaussianity.excess_kurtosis(white)).max() < 0.05
    # Units of two scales, 1 and 3: E s⁴ / (E s²)² - 1 = 41 / 25 - 1.
    scaled = normal * rng.choice([1.0, 3.0], (4, 500, 1, 20))
    excess = gaussianity.excess_kurtosis(gaussianity.whitened(scaled))
    np.testing.assert_allclose(excess, 41 / 25 - 1, atol=0.1)


def test_networks_are_farther_by_their_own_kurtosis_less_a_deep_gps(monkeypatch):
    config = gaussianity_diabetes.get_config()
    config.sampler.copies = (1, 4)
    # Units have the scale 1 or this one: the farther apart, the heavier their tails.
    scales = {("deep GP", 1): 5.0, ("deep GP", 4): 1.5, ("network", 1): 2.0, ("network", 4): 3.0}

    def draws(key, g, y, *, copies, activation, **options):
        rng = np.random.default_rng(copies)
        scale = scales["deep GP" if activation is None else "network", copies]
        units = rng.standard_normal((3, 400, 4, 8)) * rng.choice([1.0, scale], (3, 400, 1, 8))
        return SimpleNamespace(units=units, grams=np.ones((3, 2, 2, 4, 4)), acceptance=np.ones(3))

    optimum = np.zeros((2, 4, 4)), SimpleNamespace(converged=True)
    monkeypatch.setattr(gaussianity, "ordered_points", lambda config: (None, None))
    monkeypatch.setattr(gaussianity.kernels, "optimal_grams", lambda *_, **options: optimum)
    monkeypatch.setattr(gaussianity.kernels, "sample_grams", draws)
    monkeypatch.setattr(gaussianity, "draw", lambda *_: None)
    found = gaussianity.run(config, None)
    for end in ("widest", "narrowest"):
        further = found[f"network_kurtosis_{end}"] - found[f"kurtosis_{end}"]
        assert found[f"network_further_{end}"] == pytest.approx(further)
    assert found["network_further_widest"] > 0.3 > -0.3 > found["network_further_narrowest"]


def test_images_are_scored_one_by_one():
    log_probabilities = np.log([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 1, 1])
    scores = classification.by_image(log_probabilities, labels)
    np.testing.assert_array_equal(scores["accuracy"], [1, 0, 1])
    np.testing.assert_allclose(np.exp(scores["log_likelihood"]), [0.7, 0.4, 0.8])


@pytest.mark.slow
def test_starts_of_a_machine_agree_where_those_of_a_network_do_not(measure):
    changes = {
        "data.points": 6, "model.widths": (2,), "model.width": 2,
        "model.depth": 1, "train.starts": 4,
    }  # fmt: skip
    metrics, holds = measure("configs/kernels/starts_diabetes.py", changes)
    assert all(holds.values()), metrics
    assert metrics["converged"] == 1, metrics


def quick_config():
    config = regression_tables.get_config()
    config.train.steps = 60
    config.model.inducing = 20
    return config


@pytest.fixture
def quick():
    return quick_config()


@pytest.fixture(scope="module")
def houses():
    """Two splits, with the machines of `quick` whose Gram matrices are learned or not."""
    config = quick_config()
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        split = tables.random_splits(*tables.load_table("boston"), seeds=range(2), share=0.8)
        return split, {
            learned: regression_machines.trainer(config, learned=learned)(
                split.x, split.y, width=1.0, learning_rate=0.02
            )
            for learned in (True, False)
        }


@pytest.mark.slow
def test_learned_gram_matrices_predict_house_prices_better(quick, houses):
    split, machines = houses
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        learned, prior = (
            regression_machines.score(quick, machine, split) for machine in machines.values()
        )
        assert (learned.log_likelihood - prior.log_likelihood).mean() >= 0.01
        broken = machines[True]._replace(log_scales=machines[True].log_scales.at[1, 0].set(jnp.nan))
        scores = np.stack(regression_machines.score(quick, broken, split))[None]
        tried = regression_machines.Tried([broken], scores, np.zeros((1, 2)))
        with pytest.raises(UserError, match=r"kernel matrix of layer 1 .* not finite"):
            regression_machines.require_finite(quick, tried, [{"width": 1.0}])


def test_each_split_has_the_option_that_its_validation_part_chooses(quick):
    scores = np.arange(3 * 2 * 2, dtype=float).reshape(3, 2, 2)
    tried = regression_machines.Tried(
        [], scores, np.array([[1.0, 5.0], [3.0, -np.inf], [2.0, 4.0]])
    )
    assert tried.best(range(3)).tolist() == [1, 0]
    assert tried.best([0, 2]).tolist() == [2, 0]
    np.testing.assert_array_equal(tried.of(np.array([1, 0])), [[4.0, 1.0], [6.0, 3.0]])
    # What diverged and is not chosen is no error; where it is chosen it is one.
    scores[1, 0, 1] = np.nan
    regression_machines.require_finite(quick, tried, [{}] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nngp_rates": (0.02, 0.04)}, "has 2 values, expected 8 as pairs of model.widths"),
        ({"rates": (0.03, 0.08)}, r"expected the first of optimizer\.rates, 0\.03, among them"),
    ],
)
def test_the_nngp_has_as_many_rates_as_the_machine_has_pairs(quick, change, message):
    quick.optimizer.update(change)
    with pytest.raises(UserError, match=message):
        regression.run_tables(quick, None, {})


def test_tables_that_claims_are_about_are_needed(quick):
    quick.data.names = ("boston",)
    with pytest.raises(UserError, match=r"data.names lacks \['autompg', 'diabetes'\]"):
        regression.run(quick, None)
    with pytest.raises(UserError, match="unknown table 'bostn'"):
        tables.load_table("bostn")


@pytest.mark.slow
def test_a_training_that_diverges_is_told(quick, houses):
    split, machines = houses
    with jax.enable_x64(True):
        noise = machines[False].log_noise
        broken = machines[False]._replace(log_noise=noise.at[1].set(jnp.nan))
        scores = np.stack(regression_machines.score(quick, broken, split))[None]
        assert np.isfinite(scores[..., 0]).all()
        tried = regression_machines.Tried([broken], scores, np.zeros((1, 2)))
        with pytest.raises(UserError, match=r"diverged in split 1 with {'learning_rate': 0.5}"):
            regression_machines.require_finite(quick, tried, [{"learning_rate": 0.5}])
