"""One call trains a student beside a teacher by any method."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.distillation import (
    METHODS,
    ExitNetwork,
    Network,
    Outputs,
    ScaleNetwork,
    distill,
    network_variables,
    scalekd_loss,
    through_teacher,
)
from rml.errors import UserError
from rml.models import MLP, ConvNet, Exits, ViT
from tests.precision import equations

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8))
TURN = RNG.standard_normal((8, 3))
TRUTH = (X @ TURN).argmax(1)
LABELS = np.where(RNG.random(60) < 0.3, (TRUTH + 1) % 3, TRUTH)
IMAGES = jnp.asarray(X, jnp.float32)


def teacher(images):
    """Knows the truth; its features are another turn of the images."""
    return Outputs(3 * images @ jnp.asarray(TURN, jnp.float32), images[:, :6] + images[:, 2:])


STUDENT = Network(MLP(hidden=(16,), features=5), classes=3)


def train(method, **options):
    given = {"key": jax.random.key(0), "steps": 60, "batch_size": 20, "learning_rate": 2e-2}
    return distill(method, teacher, STUDENT, IMAGES, jnp.asarray(LABELS), **given | options)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fitnet", "crd"])
def test_losses_fall(method):
    found = train(method, steps=40)
    assert found.losses.shape == (40,)
    assert np.isfinite(found.losses).all()
    assert found.losses[-5:].mean() < found.losses[:5].mean()
    assert set(found.variables) == {"params"}
    assert set(found.variables["params"]) == {"encoder", "classifier"}


def right(found, labels=TRUTH):
    logits = jax.jit(STUDENT.apply)(found.variables, IMAGES).logits
    return float((np.asarray(logits).argmax(1) == labels).mean())


@pytest.mark.slow
def test_a_teacher_that_knows_better_than_labels_is_worth_its_ratio():
    by_label, by_teacher = (train("kd", ratio=ratio) for ratio in (0.0, 1.0))
    assert right(by_teacher) > right(by_label) + 0.1
    assert right(by_label, LABELS) > right(by_teacher, LABELS) + 0.1
    np.testing.assert_array_equal(by_label.ratios, 0)
    np.testing.assert_array_equal(by_label.deviations, 0)
    np.testing.assert_array_equal(by_label.at_ends, 1)


@pytest.mark.slow
def test_a_learned_ratio_finds_that_out_with_batch_statistics_of_the_students_own():
    held = (IMAGES[40:], jnp.asarray(TRUTH[40:]))
    found = distill(
        "kd", teacher, Network(MLP(hidden=(16,), features=5, norm="batch"), classes=3), IMAGES,
        jnp.asarray(LABELS), key=jax.random.key(0), steps=60, batch_size=20, learning_rate=2e-2,
        ratio="trilateral", validation=held, ratio_rate=0.02, options={"temperature": 1.0},
    )  # fmt: skip
    assert found.ratios[-5:].mean() > found.ratios[0] + 0.1
    assert found.deviations.shape == found.at_ends.shape == (60,)
    assert (found.deviations > 1e-3).all()
    assert 0 <= found.at_ends.min() <= found.at_ends.max() < 1
    statistics = jax.tree.leaves(found.variables["batch_stats"])
    assert all(np.isfinite(leaf).all() for leaf in statistics)
    assert any(np.abs(leaf).max() > 0.1 for leaf in statistics)


def exit_network(kind):
    encoder = {
        "convnet": ConvNet(widths=(3, 4), kernel_sizes=(3, 3), strides=(1, 2), features=5),
        "vit": ViT(width=8, depth=2, heads=2, patch_size=2),
    }[kind]
    return ExitNetwork(encoder, 3, Exits(classes=3, width=6, grid=2, heads=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convnet", "vit"])
def test_without_exits_the_network_is_what_it_was(kind):
    """To the bit: exits read stages and change nothing."""
    module = exit_network(kind)
    images = jnp.asarray(RNG.standard_normal((4, 8, 8, 1)), jnp.float32)
    shapes = jax.tree.map(
        lambda x: x.shape, nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    )
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda shape: jnp.asarray(rng.uniform(0.1, 0.5, shape), jnp.float32), shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    plain = Network(module.encoder, 3)
    left = network_variables(variables)
    assert all("exits" not in part for part in left.values())
    assert set(left) == ({"params", "batch_stats"} if kind == "convnet" else {"params"})
    whole, alone = jax.jit(lambda v, own, x: (module.apply(v, x), plain.apply(own, x)))(
        variables, left, images
    )
    np.testing.assert_array_equal(whole.logits, alone.logits)
    np.testing.assert_array_equal(whole.features, alone.features)
    assert whole.exits.shape == (2, 4, 3)
    assert alone.exits is None
    assert np.abs(whole.exits - whole.logits).max() > 1e-3


@pytest.mark.slow
def test_exits_are_taught_as_the_student_is():
    """A constant loss of each output shows what is summed; training brings exits to the teacher."""
    images = jnp.asarray(RNG.standard_normal((40, 8, 8, 1)), jnp.float32)
    turn = jnp.asarray(RNG.standard_normal((64, 3)) / 3, jnp.float32)

    @jax.jit
    def taught(images):
        return Outputs(4 * images.reshape(-1, 64) @ turn, images[:, 0, :, 0])

    labels = taught(images).logits.argmax(1)
    module = exit_network("convnet")
    key, given = jax.random.key(0), {"steps": 60, "batch_size": 40, "learning_rate": 4e-2}
    gammas = (0.5, 1.0, 3.0)  # of two exits, and of the student's own logits
    found = distill(
        "ofa", taught, module, images, labels, key=key, options={"gamma": gammas}, **given
    )

    @jax.jit
    def outputs_at_start(images):
        start = nn.meta.unbox(module.init(jax.random.split(key, 4)[0], images[:2], train=True))
        made, _ = module.apply(start, images, train=True, mutable=["batch_stats"])
        return [*made.exits, made.logits]

    p, one = (np.asarray(x) for x in (jax.nn.softmax(taught(images).logits), np.eye(3)[labels]))
    logs = [np.asarray(jax.nn.log_softmax(z)) for z in outputs_at_start(images)]
    each = [
        -(((p + one) ** gamma - one) * own).sum(1) for own, gamma in zip(logs, gammas, strict=True)
    ]
    # The paper's weights of the label, of the student's own logits and of exits are all one.
    expected = 0.5 * np.mean(-(one * logs[-1]).sum(1) + sum(each))
    np.testing.assert_allclose(found.losses[0], expected, rtol=1e-4)
    np.testing.assert_array_equal(found.ratios, 0.5)
    assert found.losses[-1] < 0.7 * found.losses[0]
    exits = jax.jit(module.apply)(found.variables, images).exits
    assert ((exits.argmax(-1) == labels).mean(1) > 0.6).all()
    with pytest.raises(UserError, match=r"gamma is \(1.0, 2.0\), expected .* 3 in all"):
        distill(
            "ofa", taught, module, images, labels, key=key, options={"gamma": (1.0, 2.0)}, **given
        )
    for gammas in ((1.0, 0.0, 1.0), jnp.array([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=r"gamma is 0\.0, expected a number above 0"):
            distill(
                "ofa", taught, module, images, labels, key=key, options={"gamma": gammas}, **given
            )


class Still(nn.Module):
    """A student whose logits are its images, which its one parameter does not change."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        images = images * self.param("scale", nn.initializers.ones, ())
        return Outputs(images, images)


class Shifted(nn.Module):
    """A student that holds an array, so that no other is equal to it."""

    shift: np.ndarray

    @nn.compact
    def __call__(self, images, *, train):
        del train
        images = images * self.param("scale", nn.initializers.ones, ()) + self.shift
        return Outputs(images, images)


@pytest.mark.slow
def test_a_student_that_holds_an_array_is_taught():
    rows, labels = IMAGES[:, :3], jnp.asarray(LABELS)
    given = {"key": jax.random.key(0), "steps": 2, "batch_size": 60, "ratio": 0.0}
    shifts = np.float32([[0.5, 0, -1], [0, 2, 0]])
    losses = [
        distill("kd", lambda x: Outputs(x, x), Shifted(shift), rows, labels, **given).losses[0]
        for shift in shifts
    ]
    logs = jax.nn.log_softmax(np.asarray(rows) + shifts[:, None])
    expected = -np.asarray(logs)[:, np.arange(60), LABELS].mean(1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class Dropping(nn.Module):
    """A student of which other features are dropped in every step."""

    @nn.compact
    def __call__(self, images, *, train=False):
        kept = nn.Dropout(0.5, deterministic=not train)(images)
        return Outputs(nn.Dense(3)(kept), kept)


@pytest.mark.parametrize("ratio", [0.5, "trilateral"])
@pytest.mark.slow
def test_a_student_with_dropout_has_another_mask_in_every_step(ratio):
    one = jnp.repeat(IMAGES[:1], 60, axis=0), jnp.zeros(60, int)
    found = distill(
        "kd", teacher, Dropping(), *one, key=jax.random.key(0), steps=4, batch_size=60,
        learning_rate=0.0, ratio=ratio, validation=one if ratio == "trilateral" else None,
    )  # fmt: skip
    # All images are one, and nothing is learned.
    assert np.abs(np.diff(np.sort(found.losses))).min() > 1e-3


@pytest.mark.slow
def test_every_epoch_has_an_order_of_its_own_and_draws_no_image_twice():
    """The loss of image i is 2^i, so that the bits of a step's sum are its images."""
    count, batch, steps = 11, 4, 9
    wanted = 2.0 ** np.arange(count)
    second = wanted + np.log(-np.expm1(-wanted))  # log(e^x - 1), which does not overflow
    logits = jnp.stack([jnp.zeros(count), jnp.asarray(second, jnp.float32)], axis=1)

    @jax.jit
    def losses(key):
        return distill(
            "kd", lambda x: Outputs(x, x), Still(), logits, jnp.zeros(count, int),
            key=key, steps=steps, batch_size=batch, ratio=0.0, learning_rate=0.0,
        ).losses  # fmt: skip

    def drawn(seed):
        sums = batch * np.asarray(losses(jax.random.key(seed)))
        bits = np.rint(sums).astype(int)
        np.testing.assert_allclose(sums, bits, rtol=1e-5)
        return bits.tolist()

    first = drawn(0)
    assert [bits.bit_count() for bits in first] == [batch] * steps
    epochs = list(zip(first[::2], first[1::2], strict=False))
    assert all(one & other == 0 for one, other in epochs)
    assert len(set(epochs)) == len({one | other for one, other in epochs}) == steps // 2
    assert drawn(0) == first != drawn(1)


def test_no_step_sorts_all_images():
    program = jax.make_jaxpr(lambda: train("kd", steps=7).losses)()
    loops = [own for own in equations(program.jaxpr) if own.primitive.name == "scan"]
    (steps,) = (own for own in loops if own.params["length"] == 7)
    names = {own.primitive.name for own in equations(steps.params["jaxpr"].jaxpr)}
    assert "dot_general" in names
    assert "sort" not in names


VIT = ViT(width=8, depth=2, heads=2, patch_size=4, pooling="gap")
SCALE = ScaleNetwork(
    ConvNet(widths=(3, 4), kernel_sizes=(3, 3), strides=(2, 2), features=5), 3, grid=(2, 2),
    width=8, heads=2, projector="linear",
)  # fmt: skip


@pytest.mark.slow
def test_scalekd_is_one_call():
    """First losses are those by hand, of the first weights and after a step of AdamW."""
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.standard_normal((12, 8, 8, 1)), jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(VIT.init, jax.random.key(0), images))
    frozen = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-1, 1, x.shape), x.dtype), shapes)
    end, turn = partial(through_teacher, VIT, frozen), jnp.asarray(rng.normal(size=(8, 3)))

    def taught(x):
        found = VIT.apply(frozen, x, stages=True)
        tokens = end(found.stages[-1], start=2)
        return Outputs(2 * found.features @ turn, found.features, tokens=tokens)

    path, key = partial(end, start=1), jax.random.key(1)
    given = {"direct": 0.5, "alternative": 0.2}

    @jax.jit
    def by_hand(images):
        known = taught(images)
        labels = known.logits.argmax(1)
        start = nn.meta.unbox(SCALE.init(jax.random.split(key, 4)[0], images[:2], train=True))

        def loss(params):
            own = {**start, "params": params}
            found, _ = SCALE.apply(own, images, path=path, train=True, mutable=["batch_stats"])
            return scalekd_loss(
                found, known.logits, known.tokens, labels, share=0.5, **given
            ).mean()

        def step(carry, _):
            params, moments = carry
            value, slope = jax.value_and_grad(loss)(params)
            updates, moments = rate.update(slope, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        rate = optax.adamw(optax.cosine_decay_schedule(2e-2, 30))
        carry = start["params"], rate.init(start["params"])
        return labels, jax.lax.scan(step, carry, length=2)[1]

    labels, wanted = by_hand(images)
    found = distill(
        "scalekd", taught, SCALE, images, labels, key=key, steps=30, batch_size=12,
        learning_rate=2e-2, path=path, options=given,
    )  # fmt: skip
    np.testing.assert_allclose(found.losses[:2], wanted, rtol=1e-4)
    np.testing.assert_array_equal(found.ratios, 0.5)
    assert found.losses[-1] < 0.8 * found.losses[0]
    left = network_variables(found.variables)
    alone = jax.jit(Network(SCALE.encoder, 3).apply)(left, images)
    assert (alone.logits.argmax(1) == labels).mean() > 0.5


def test_scalekd_needs_its_student_and_tokens():
    images = jnp.zeros((4, 8, 8, 1))
    given = {"key": jax.random.key(0), "steps": 1, "batch_size": 2}
    labels = jnp.zeros(4, int)
    with pytest.raises(UserError, match="student is a Network, expected a ScaleNetwork"):
        distill("scalekd", teacher, STUDENT, IMAGES[:4], labels, **given)
    with pytest.raises(UserError, match="student is a ScaleNetwork, expected"):
        distill("kd", teacher, SCALE, images, labels, **given)
    plain = lambda x: Outputs(x[:, 0, :3, 0], x[:, 0, :, 0])  # noqa: E731
    with pytest.raises(UserError, match="scalekd reads a teacher's tokens"):
        distill("scalekd", plain, SCALE, images, labels, **given)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("kdd", {}, "distillation method 'kdd'"),
        ("kd", {"batch_size": 61}, "batch_size is 61, expected 1 to 60"),
        ("kd", {"ratio": 1.5}, r"ratio is 1.5, expected a share in \[0, 1\]"),
        ("kd", {"ratio": "learned"}, "ratio 'learned'"),
        ("kd", {"ratio": "trilateral"}, "needs validation data"),
        (
            "kd",
            {"ratio": "trilateral", "validation": (IMAGES[:7], jnp.asarray(LABELS[:5]))},
            "validation has 5 labels, expected 7, one an image",
        ),
        ("crd", {"ratio": "trilateral"}, "crd reads features"),
    ],
)
def test_wrong_arguments_are_named(method, options, message):
    with pytest.raises(UserError, match=message):
        train(method, **options)


def test_every_image_has_a_label():
    with pytest.raises(UserError, match="labels has 59 rows, expected 60, one an image"):
        distill(
            "kd", teacher, STUDENT, IMAGES, jnp.asarray(LABELS[1:]), key=jax.random.key(0), steps=1
        )


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_are_classes_of_the_teacher(label):
    wrong = jnp.asarray(LABELS).at[7].set(label)
    said = f"must lie between 0 and 2, got values from {min(label, 0)} to {max(label, 2)}$"
    with pytest.raises(ValueError, match=f"^labels {said}"):
        distill("kd", teacher, STUDENT, IMAGES, wrong, key=jax.random.key(0), steps=1,
                batch_size=20)  # fmt: skip
    with pytest.raises(ValueError, match=f"^labels of validation {said}"):
        train("kd", ratio="trilateral", validation=(IMAGES, wrong))


def test_the_table_says_what_a_loss_reads():
    assert {row.reads for row in METHODS.values()} == {"logits", "features", "tokens"}
    assert {name for name, row in METHODS.items() if row.maps == "both"} == {"crd"}
    # Losses whose papers give them the weight 1 beside that of the label.
    halves = {name for name, row in METHODS.items() if row.share == 0.5}
    assert halves == {"dkd", "dist", "ofa", "scalekd"}
