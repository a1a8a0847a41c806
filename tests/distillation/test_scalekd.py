"""A student whole: its stages by single projectors, its loss by NumPy, the network that is left."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import (
    CrossAttentionProjector,
    LinearProjector,
    Network,
    Projected,
    ScaleNetwork,
    dual_view,
    mimic,
    network_variables,
    scalekd_loss,
    through_teacher,
)
from rml.models import ConvNet, ViT
from rml.models.layers import Stages

B, GRID, WIDTH, HEADS = 3, (2, 2), 4, 2
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((B, 8, 8, 1)), jnp.float32)
ENCODER = ConvNet(widths=(3, 4, 5), kernel_sizes=(3, 3, 3), strides=(2, 1, 2), features=6)


def student(**options):
    return ScaleNetwork(ENCODER, 3, grid=GRID, width=WIDTH, heads=HEADS, scale=2.0, **options)


def path(tokens):
    """Stands for the blocks of a teacher; it is not linear, and mixes tokens."""
    return jnp.tanh(tokens) + 0.3 * tokens.mean(1, keepdims=True)


def template(**options):
    init = partial(student(**options).init, train=True)
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), IMAGES))


@cache
def case(projector="attention"):
    """A student with drawn variables, what it finds in training, and what that changes."""
    module, rng = student(projector=projector), np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(-0.9, 1.1, x.shape), x.dtype),
        template(projector=projector),
    )

    @jax.jit
    def run(variables):
        found, changed = module.apply(
            variables, IMAGES, path=path, train=True, mutable=["batch_stats"]
        )
        encoder = {name: part["encoder"] for name, part in variables.items()}
        stages, _ = ENCODER.apply(encoder, IMAGES, train=True, stages=True, mutable=["batch_stats"])
        return found, changed, stages

    return variables, *run(variables)


def of_view(variables, name, view):
    return {
        part: jax.tree.map(lambda leaf: leaf[view], own[name])
        for part, own in variables.items() if name in own
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["attention", "linear"])
def test_each_view_has_a_projector_and_the_last_stage_asks_with_what_left_the_path(projector):
    variables, found, changed, stages = case(projector)
    module = LinearProjector(GRID, WIDTH)
    if projector == "attention":
        module = CrossAttentionProjector(GRID, WIDTH, HEADS, scale=2.0)

    @jax.jit
    def alone(own, x, query):
        return module.apply(own, x, query, train=True, mutable=["batch_stats"])

    for view in (0, 1):
        third, kept = alone(of_view(variables, "third", view), stages.stages[-2], None)
        np.testing.assert_allclose(found.third[view], path(third), rtol=1e-4, atol=1e-5)
        query = path(third) if projector == "attention" else None
        fourth, _ = alone(of_view(variables, "fourth", view), stages.stages[-1], query)
        np.testing.assert_allclose(found.fourth[view], fourth, rtol=2e-3, atol=1e-4)
        if query is not None:
            other, _ = alone(of_view(variables, "fourth", view), stages.stages[-1], -query)
            assert np.abs(other - fourth).max() > 0.05
        if kept:
            own = jax.tree.map(lambda x, view=view: x[view], changed["batch_stats"]["third"])
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), own, kept["batch_stats"])
    assert np.abs(found.third[0] - found.third[1]).max() > 1e-2


def test_learned_queries_are_a_table_of_each_view():
    learned, ours = (template(queries=name)["params"] for name in ("learned", "path"))
    assert learned["fourth"]["query"].shape == (2, 1, 4, WIDTH)
    assert "query" not in ours["fourth"]
    assert ours["third"]["query"].shape == (2, 1, 4, WIDTH)


@pytest.mark.slow
def test_without_projectors_the_network_is_what_it_was():
    """To the bit: projectors read stages and change nothing."""
    variables, *_ = case()
    kept = network_variables(variables)
    assert all(set(part) <= {"encoder", "classifier"} for part in kept.values())
    module = student()
    whole = jax.jit(lambda v: module.apply(v, IMAGES, path=path))(variables)
    alone = jax.jit(lambda v: Network(ENCODER, 3).apply(v, IMAGES))(kept)
    np.testing.assert_array_equal(whole.logits, alone.logits)
    np.testing.assert_array_equal(whole.features, alone.features)


@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_parts():
    rng = np.random.default_rng(2)
    z, t = rng.standard_normal((2, B, 3))
    views, last = rng.standard_normal((2, 2, B, 4, WIDTH)), rng.standard_normal((B, 4, WIDTH))
    labels = np.array([2, 0, 1])
    teacher = jnp.asarray(t, jnp.float32), jnp.asarray(last, jnp.float32), jnp.asarray(labels)
    found = Projected(*(jnp.asarray(x, jnp.float32) for x in (z, z, *views)))
    given = {"direct": 0.7, "alternative": 1.3, "share": 0.2, "temperature": 3.0}
    loss = scalekd_loss(found, *teacher, **given)

    def logs(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    label = -logs(z)[np.arange(B), labels]
    soft = -9 * (np.exp(logs(t / 3)) * logs(z / 3)).sum(-1)
    stages = sum(
        weight * np.asarray(mimic(own[view], teacher[1], remove_mean=view == 1))
        for own in (found.third, found.fourth) for view, weight in ((0, 0.7), (1, 1.3))
    )  # fmt: skip
    np.testing.assert_allclose(loss, 0.8 * label + 0.2 * soft + stages, rtol=1e-5)
    copied = found._replace(third=jnp.stack([teacher[1]] * 2), fourth=jnp.stack([teacher[1]] * 2))
    least = scalekd_loss(copied, *teacher, **given)
    np.testing.assert_allclose(least, 0.8 * label + 0.2 * soft, rtol=1e-5)


def test_losses_are_of_the_same_examples(unchecked):
    z, views, last = jnp.zeros((B, 3)), jnp.ones((2, B, 4, WIDTH)), jnp.ones((B, 4, WIDTH))
    found, labels = Projected(z, z, views, views), jnp.zeros(B, int)
    for given in (
        (found, z, last, labels[:1]), (found, z[:1], last, labels), (found, z, last[:1], labels),
        (found._replace(logits=z[:1]), z, last, labels),
        (found._replace(third=views[:, :1], fourth=views[:, :1]), z, last[:1], labels),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="shapes do not fit: logits"):
            scalekd_loss(*given)
    with pytest.raises(ValueError, match="labels must lie between 0 and 2, got values from 3 to 3"):
        scalekd_loss(found, z, last, labels + 3)


@pytest.mark.slow
def test_a_class_token_of_a_student_is_not_projected():
    encoder = ViT(width=4, depth=2, heads=2, mlp_ratio=1, patch_size=4, pooling="cls")
    module = ScaleNetwork(encoder, 3, grid=(1, 2), width=WIDTH, projector="linear")
    init = partial(module.init, train=True)
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), IMAGES))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(-0.9, 0.9, x.shape), x.dtype), shapes
    )

    @jax.jit
    def run(variables):
        own = {"params": variables["params"]["encoder"]}
        return module.apply(variables, IMAGES), encoder.apply(own, IMAGES, stages=True)

    found, stages = run(variables)
    assert stages.stages[0].shape == (B, 1 + 4, 4)
    for name, stage in zip(("third", "fourth"), stages.stages, strict=True):
        columns = np.asarray(stage)[:, 1:].reshape(B, 2, 2, 4).mean(1)  # two rows become one
        for view in (0, 1):
            own = jax.tree.map(lambda x, view=view: x[view], variables["params"][name]["out"])
            expected = columns @ own["kernel"] + own["bias"]
            np.testing.assert_allclose(getattr(found, name)[view], expected, rtol=1e-4, atol=1e-5)


class Given(nn.Module):
    """An encoder whose stages are what it is given."""

    def __call__(self, x, *, train, stages):
        del train, stages
        return Stages(x.mean((1, 2)), (x, x))


@pytest.mark.slow
def test_a_student_with_the_teachers_tokens_leaves_its_blocks_as_the_teacher_does():
    teacher = ViT(width=WIDTH, depth=2, heads=2, mlp_ratio=1, patch_size=4, pooling="gap")
    rng = np.random.default_rng(2)
    shapes = nn.meta.unbox(jax.eval_shape(teacher.init, jax.random.key(0), IMAGES))
    frozen = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.9, 0.9, x.shape), x.dtype), shapes)
    tokens = jnp.asarray(rng.standard_normal((B, 4, WIDTH)), jnp.float32)
    module = ScaleNetwork(Given(), 3, grid=GRID, width=WIDTH, projector="linear")
    same = {"out": {"kernel": jnp.stack([jnp.eye(WIDTH)] * 2), "bias": jnp.zeros((2, WIDTH))}}
    head = {"kernel": jnp.zeros((WIDTH, 3)), "bias": jnp.zeros(3)}
    own = {"params": {"third": same, "fourth": same, "classifier": {"out": head}}}

    @jax.jit
    def run(frozen, tokens):
        last = through_teacher(teacher, frozen, tokens, start=1)
        path = partial(through_teacher, teacher, frozen, start=1)
        return last, module.apply(own, tokens.reshape(B, *GRID, WIDTH), path=path)

    last, found = run(frozen, tokens)
    np.testing.assert_allclose(found.third, [last, last], rtol=1e-5, atol=1e-6)
    given = {"direct": 3.92, "alternative": 2.94}
    np.testing.assert_allclose(dual_view(found.third, last, **given), 0, atol=1e-6)
    assert (dual_view(found.fourth, last, **given) > 0.1).all()  # which did not pass them


def test_an_encoder_of_one_stage_is_refused():
    encoder = ConvNet(widths=(3,), kernel_sizes=(3,), strides=(2,), features=6)
    module = ScaleNetwork(encoder, 3, grid=GRID, width=WIDTH)
    with pytest.raises(ValueError, match=r"stages is \(-2, -1\), .* which has 1"):
        jax.eval_shape(module.init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize("option", [{"projector": "attend"}, {"queries": "given"}])
def test_unknown_options_are_named(option):
    with pytest.raises(ValueError, match=f"unknown {next(iter(option))}"):
        jax.eval_shape(student(**option).init, jax.random.key(0), IMAGES)
