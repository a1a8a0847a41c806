"""A student beside its teacher on augmented digits; `make claims` measures students that learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.meta import unbox

import rml
from configs.distillation import distill_fashion as config_file
from configs.distillation import ofakd_imagenet2012
from experiments.common.supervised import one_crop
from experiments.distillation import distill, distill_tasks
from rml.data import augment
from rml.distillation import scalekd_loss, through_teacher
from rml.errors import UserError
from rml.losses import kd_loss, smoothed_cross_entropy
from tests.system.two_steps import override

MLP = {"name": "mlp", "hidden": (12,), "features": 6}
VIT = {"name": "vit_ti", "width": 8, "depth": 2, "heads": 2, "patch_size": 4, "pooling": "cls",
       "positions": "learned"}  # fmt: skip
DIGITS = {
    "data.name": "digits", "data.image_shape": (8, 8, 1), "data.train": "train[:400]",
    "data.validation": "train[400:600]", "train.batch_size": 32, "train.steps": 6,
    "train.eval_every": 3, "train.log_every": 3, "train.checkpoint_every": 6, "rates": (1e-2,),
    "optimizer.warmup_steps": 1, "teaching.optimizer.warmup_steps": 1,
    "teaching.train.batch_size": 32, "teaching.train.steps": 6, "teaching.train.eval_every": 3,
    "teaching.train.log_every": 3, "teaching.train.checkpoint_every": 6,
    "teacher": MLP, "student": MLP, "evaluation.batch_size": 256,
    "augment.random_erase.p": 0.0,
}  # fmt: skip


def small(**changes):
    """The config on digits; double underscores stand for dots."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return override(config_file.get_config(), DIGITS | changes)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_draws_and_is_loaded(measure, tmp_path):
    changes = {"student": MLP | {"norm": "batch"}}
    metrics, holds = measure("configs/distillation/distill_fashion.py", DIGITS | changes)
    assert len(holds) == len(distill.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    directory = tmp_path / "run"
    figures = {path.name for path in (directory / "figures").glob("*.png")}
    assert figures == set(distill.CAPTIONS)
    assert metrics["rate_student"] == DIGITS["rates"][0]
    for one, other in (
        ("student", "alone"),
        ("again", "alone"),
        ("alone", "fixed"),
        ("alone", "apart"),
    ):
        difference = metrics[f"accuracy_{one}"] - metrics[f"accuracy_{other}"]
        assert metrics[f"{one}_over_{other}"] == pytest.approx(difference, abs=1e-6)
    assert distill.tries(small()) == dict.fromkeys(distill_tasks.SIDES, len(DIGITS["rates"]))
    images = np.zeros((3, 8, 8, 1), np.uint8)
    for name in ("teacher", "student_0", "alone_0"):
        found = rml.load(directory / "methods" / name)
        assert found(images).shape == (3, 6)
    # The teacher of this run is that of another, if the other's config is the same.
    config = small(**{name.replace(".", "__"): value for name, value in changes.items()})
    config.teaching.run = str(directory)
    problem = distill_tasks.teacher_task(config)
    taken = distill.of_run(config, problem)
    own = rml.load(directory / "methods" / "teacher").embedder.variables
    jax.tree.map(np.testing.assert_array_equal, taken, own)
    config.data.train = "train[:300]"
    with pytest.raises(UserError, match=r"of another config.*data\.train: 'train\[:400\]' there"):
        distill.of_run(config, problem)
    config.teaching.run = str(tmp_path)
    with pytest.raises(UserError, match=r"teaching\.run is .*expected the directory of a run"):
        distill.of_run(config, problem)


def first_step(config, name, seed=1, scale=1.0):
    """Metrics of one step of a student with `scale` times its teacher's logits, and the latter."""
    net = distill_tasks.classifier(config, config.teacher)
    shape = tuple(config.data.image_shape)
    init = jax.jit(lambda key: net.init(key, jnp.zeros((2, *shape)), train=False))
    plain = unbox(init(jax.random.key(3)))
    problem = distill_tasks.student_task(config, name, plain)
    state = unbox(jax.jit(problem.init)(jax.random.key(seed)))
    head = jax.tree.map(lambda x: scale * x, plain["params"]["head"])
    copied = {"encoder": plain["params"]["encoder"], "classifier": head}
    state = state.replace(params={**state.params, "student": copied})
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, *shape), np.uint8),
             "label": rng.integers(0, 10, 8).astype(np.int32)}  # fmt: skip
    _, metrics = jax.jit(problem.step)(state, batch)
    logits = jax.jit(lambda x: net.apply(plain, x, train=False))(augment.to_float(batch["image"]))
    return {k: float(value) for k, value in metrics.items()}, logits, jnp.asarray(batch["label"])


@pytest.mark.parametrize(("side", "same"), [("student", True), ("fixed", False), ("apart", False)])
@pytest.mark.slow
def test_the_teacher_reads_the_views_that_a_side_says(side, same):
    """A student that is its own teacher says the same of the same views, and of no others."""
    metrics, _, _ = first_step(small(), f"{side}_0")
    assert (metrics["beside"] < 1e-6) == same
    assert (metrics["agreement"] == 1.0) == same


@pytest.mark.slow
def test_without_augmentation_views_are_the_images_as_they_are():
    plain = small(augment__order=())
    assert first_step(plain, "fixed_0")[0]["beside"] < 1e-6
    assert first_step(plain, "apart_0")[0]["beside"] < 1e-6


@pytest.mark.slow
def test_the_teacher_and_the_label_have_their_weights():
    metrics, logits, labels = first_step(small(augment__order=()), "student_0", scale=3.0)
    beside = kd_loss(3 * logits, logits, labels, temperature=2.0).mean()
    assert metrics["beside"] == pytest.approx(float(beside), rel=1e-4)
    label = smoothed_cross_entropy(3 * logits, labels, smoothing=0.0).mean()
    assert metrics["loss"] == pytest.approx(float(0.1 * label + 0.9 * beside), rel=1e-4)


def test_one_side_is_labels_alone_with_another_seed():
    config = small(seed=3)
    again, alone = (
        distill_tasks.student_task(config, f"{side}_0") for side in ("again", "alone")
    )  # fmt: skip
    assert distill_tasks.seeded(config, "again_0").seed == 1_003
    assert distill_tasks.seeded(config, "alone_0").seed == config.seed == 3
    shapes = [jax.eval_shape(own.init, jax.random.key(0)) for own in (again, alone)]
    assert shapes[0].params.keys() == shapes[1].params.keys() == {"student"}
    assert not shapes[0].extra
    batches = [next(iter(own.batches()))["label"] for own in (again, alone)]
    assert (batches[0] != batches[1]).any()


@pytest.mark.slow
def test_labels_have_their_weight_and_smoothing_and_alone_no_other_loss():
    plain = small(augment__order=(), loss__smoothing=0.2, beside__label=0.3)
    metrics, logits, labels = first_step(plain, "alone_0")
    label = float(smoothed_cross_entropy(logits, labels, smoothing=0.2).mean())
    assert metrics["loss"] == pytest.approx(label, rel=1e-5)
    assert "beside" not in metrics
    metrics, _, _ = first_step(plain, "fixed_0")
    assert metrics["loss"] == pytest.approx(0.3 * label, rel=1e-5)


def test_a_loss_on_features_trains_a_map_and_has_its_options():
    config = small(beside__loss="fitnet", beside__options={}, student=MLP | {"features": 4})
    problem = distill_tasks.student_task(config, "student_0")
    state = jax.eval_shape(problem.init, jax.random.key(0))
    assert set(state.params) == {"student", "maps"}
    assert state.params["maps"]["student"]["kernel"].value.shape == (4, 6)
    alone = jax.eval_shape(distill_tasks.student_task(config, "alone_0").init, jax.random.key(0))
    assert set(alone.params) == {"student"}
    assert not alone.extra


@pytest.mark.slow
def test_tokens_are_taught_through_the_last_blocks_of_the_teacher():
    """As `scalekd_loss` of a student that asks for the grid of the teacher's patches."""
    changes = {"augment__order": (), "beside__loss": "scalekd", "teacher": VIT,
               "student": {"name": "convnet", "widths": (4, 6), "kernel_sizes": (3, 3),
                           "strides": (2, 2), "norm": "none", "features": 5},
               "beside__options": {"direct": 2.0, "alternative": 3.0, "temperature": 2.0},
               "beside__tokens__heads": 2, "beside__tokens__scale": 3.0}  # fmt: skip
    config = small(**changes)
    net = distill_tasks.classifier(config, config.teacher)
    shape = (2, 8, 8, 1)
    init = jax.jit(lambda key: net.init(key, jnp.zeros(shape), train=False))
    teacher = unbox(init(jax.random.key(3)))
    problem = distill_tasks.student_task(config, "student_0", teacher)
    state = unbox(jax.jit(problem.init)(jax.random.key(1)))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    batch = {"image": images, "label": np.array([1, 2, 0], np.int32)}
    _, metrics = jax.jit(problem.step)(state, batch)
    vit = net.encoder
    floats, labels = jnp.asarray(augment.to_float(images)), jnp.asarray(batch["label"])
    module = distill_tasks.student(config, "student").student
    batch_stats = state.model_state["batch_stats"]["student"]

    @jax.jit
    def expected(teacher, params):
        own = {"params": teacher["params"]["encoder"]}
        told = vit.apply(own, floats, train=False, stages=True)
        logits = net.apply(teacher, floats, train=False)
        # Without the class token.
        tokens = through_teacher(vit, own, told.stages[-1][:, 1:], start=2)
        found = module.apply(
            {"params": params, "batch_stats": batch_stats}, floats, train=True,
            mutable=["batch_stats"], path=lambda x: through_teacher(vit, own, x, start=1),
        )[0]  # fmt: skip
        beside = scalekd_loss(
            found, logits, tokens, labels, direct=2.0, alternative=3.0, temperature=2.0, share=1.0
        )
        return found, beside.mean()

    found, beside = expected(teacher, state.params["student"])
    assert found.third.shape == (2, 3, 4, 8)
    assert metrics["beside"] == pytest.approx(float(beside), rel=1e-5)
    label = smoothed_cross_entropy(found.logits, labels, smoothing=0.0).mean()
    assert metrics["loss"] == pytest.approx(float(0.1 * label + 0.9 * beside), rel=1e-5)


@pytest.mark.slow
def test_exits_are_those_of_students_that_have_a_teacher():
    stages = {"name": "convnet", "widths": (4, 4), "kernel_sizes": (3, 3), "strides": (2, 2),
              "norm": "batch", "pooling": "mean", "features": 6}  # fmt: skip
    config = small(student=stages, beside__loss="ofa", beside__options={"gamma": (1.0, 1.0, 1.5)},
                   beside__exits={"width": 6})  # fmt: skip
    distill_tasks.check(config)
    for side, parts in (("fixed", {"encoder", "classifier", "exits"}),
                        ("alone", {"encoder", "classifier"})):  # fmt: skip
        problem = distill_tasks.student_task(config, f"{side}_0")
        state = jax.eval_shape(problem.init, jax.random.key(0))
        assert set(state.params["student"]) == parts
        _, metrics = jax.eval_shape(problem.step, unbox(state), problem.batch_spec)
        assert ("beside" in metrics) == (side == "fixed")
        kept = jax.tree.map(lambda leaf: leaf.shape, distill_tasks.used(unbox(state).variables))
        assert set(kept["params"]) == set(kept["batch_stats"]) | {"head"} == {"encoder", "head"}


def test_validation_images_choose_a_rate():
    assert distill.best_of({0: 0.2, 1: 0.5, 2: 0.4}) == 1
    assert distill.best_of({0: 0.5, 1: 0.5}) == 0


@pytest.mark.slow
def test_rates_are_those_of_the_directories():
    config = small(rates=(1e-2, 3e-2), optimizer__warmup_steps=0)
    rates = [first_step(config, f"alone_{i}")[0]["learning_rate"] for i in (0, 1)]
    assert rates == pytest.approx([1e-2, 3e-2])


def test_one_crop_is_cut_on_the_host():
    config = ofakd_imagenet2012.get_config()
    spec = distill_tasks.student_task(config, "student_0").batch_spec["image"]
    assert spec.shape == (1024, 1, 224, 224, 3)
    crops = jnp.arange(2 * 1 * 3 * 3 * 1.0).reshape(2, 1, 3, 3, 1)
    np.testing.assert_array_equal(one_crop(crops), crops[:, 0])
    np.testing.assert_array_equal(one_crop(crops[:, 0]), crops[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beside__loss": "kdd"}, "unknown beside.loss 'kdd'; did you mean 'kd'"),
        ({"beside__loss": "scalekd"}, "teacher.name is 'mlp' .* expected a ViT"),
        ({"beside__loss": "scalekd", "teacher": VIT, "beside__tokens__blocks": 3},
         "blocks is 3, expected 1 to 2, the teacher's"),
        ({"beside__loss": "scalekd", "teacher": VIT, "beside__options": {"share": 0.5}},
         "unknown option of scalekd in beside.options 'share'"),
        ({"beside__options": {"gamma": 2.0}}, "unknown option of kd in beside.options 'gamma'"),
        ({"beside__loss": "rkd_angle", "beside__options": {}, "beside__exits": {"width": 4}},
         "expected no exits, or a loss on logits"),
        ({"rates": ()}, "rates is empty, expected at least one learning rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        distill_tasks.check(small(**changes))


def test_a_name_that_is_no_student_is_told():
    with pytest.raises(UserError, match="unknown student of the run 'studnt_0'"):
        distill_tasks.side_of("studnt_0")
    assert distill_tasks.side_of("apart_3") == ("apart", 3)


def test_classes_of_the_config_are_those_of_the_images():
    with pytest.raises(UserError, match="digits has 10 classes, expected classes=9"):
        distill_tasks.sources(small(classes=9))
