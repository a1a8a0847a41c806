"""The recipe on multilevel training; `make claims` measures models that learn."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from configs.merging import multilevel_pydocs
from experiments.common import small_lm
from experiments.common.many import replaced
from experiments.merging import (
    multilevel,
    multilevel_problems,
    multilevel_similarity,
    multilevel_training,
)
from experiments.merging.multilevel_arms import ARMS, groups, phases
from experiments.merging.multilevel_problems import Problem, of_shape
from experiments.merging.multilevel_similarity import Alike, Parts
from experiments.merging.multilevel_training import Part, Trained
from rml.errors import UserError
from rml.evaluation import linear_cka
from rml.models import Bert, Llama, ViT
from rml.training import Loss, RunDirectory, build_optimizer, gradient_task
from rml.training.multilevel import Phase, coalesce
from tests.system.two_steps import override, read

SMALL = {
    "text.length": 8, "text.vocabulary": 32, "text.windows": 4, "model.width": 8,
    "model.depth": 4, "model.mlp": 8, "train.batch_size": 2, "train.steps": 40,
    "cycle.rates": (1e-3, 2e-3, 4e-3),
}  # fmt: skip
FILE = "configs/merging/multilevel_pydocs.py"
SECONDS = {(1, 1): 3.0, (2, 2): 1.0, (4, 4): 1.0, (1, 2): 2.0, (2, 1): 2.0}
FLOPS = {(1, 1): 10.0, (2, 2): 2.0, (4, 4): 1.0, (1, 2): 6.0, (2, 1): 5.0}


def small():
    return override(read(FILE), SMALL)


def text():
    rng = np.random.default_rng(0)
    streams = {part: rng.integers(0, 32, 200).astype(np.int32) for part in small_lm.PARTS}
    return small_lm.Text(None, streams)


@pytest.mark.slow
def test_flops_of_a_step_are_three_forward_passes():
    config, d, k, layers, mlp, vocabulary = small(), 8, 2, 4, 8, 32
    tokens = config.text.length - 1
    block = tokens * (2 * 4 * d * d + 2 * 3 * d * mlp) + 2 * 2 * tokens**2 * 4 * k
    forward = layers * block + tokens * 2 * d * vocabulary
    task = small_lm.task(config, text())
    assert multilevel_problems.step_flops(task) == 3 * config.train.batch_size * forward


@pytest.mark.parametrize("name", ARMS)
def test_all_arms_have_the_flops_of_training_from_scratch(name):
    config, arm = small(), ARMS[name]
    own = phases(config, arm, FLOPS, 1e-3)
    spent = sum(FLOPS[arm.shapes[phase.level]] * phase.steps for phase in own)
    if name == "noise":
        assert [phase.change for phase in own] == ["coalesce"]
        return
    assert 390 < spent <= 400
    before = {"trained": 2, "fresh": 0}[arm.begins] if len(arm.shapes) > 1 else 40
    assert sum(p.steps for p in own if p.change == "start" and p.level == 0) == before
    assert all(p.steps == 20 for p in own if p.level and p.steps > 2)
    for phase in own:
        assert phase.rate == pytest.approx(1e-3 * 2**phase.level)


def test_a_small_level_that_leaves_no_step_is_named():
    config = replaced(small(), {"cycle.small": 5.0})
    with pytest.raises(UserError, match=r"cycle\.small is 5.0, expected less"):
        phases(config, ARMS["both"], FLOPS, 1e-3)
    with pytest.raises(UserError, match=r"model\.depth is 6, expected a multiple of 4"):
        multilevel.check(replaced(small(), {"model.depth": 6}))
    with pytest.raises(UserError, match="seeds is 3, expected 1"):
        multilevel.check(replaced(small(), {"seeds": 3}))
    with pytest.raises(UserError, match=r"cycle\.rates is empty"):
        multilevel.check(replaced(small(), {"cycle.rates": ()}))


def test_a_loss_is_reached_between_two_evaluations():
    flops, losses = np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0])
    at, none = np.arange(1.0, 4.0), np.zeros(2)
    part = Part(Phase(0, "start", 3, 1.0), at, flops, 0 * losses, losses, 0.0, none)
    assert multilevel.reached(part, 1.25) == pytest.approx(27.5)
    assert multilevel.reached(part, 5.0) == 10.0
    assert multilevel.reached(part, 0.5) == float("inf")


def test_flops_and_time_are_those_at_the_validation_loss_from_scratch():
    """Test losses say nothing: they are lowest where validation losses are highest."""

    def part(level, steps, each, start, validation):
        at = np.linspace(steps / len(validation), steps, len(validation))
        change = "start" if start == 0 else "decoalesce"
        own = np.asarray(validation)
        phase = Phase(level, change, steps, 1.0)
        return Part(phase, at, start + each * at, -own, own, start, np.zeros(2))

    best = {
        "scratch": Trained(None, (part(0, 40, 10.0, 0.0, [3.0, 2.0]),)),
        "both": Trained(None, (
            part(0, 2, 10.0, 0.0, [4.0]), part(1, 20, 2.0, 20.0, [5.0]),
            part(0, 34, 10.0, 60.0, [2.5, 1.5]),
        )),
        "alpha_0": Trained(None, (part(0, 2, 10.0, 0.0, [4.0]), part(0, 34, 10.0, 60.0, [3.0]))),
    }  # fmt: skip
    found = multilevel.saved(best, 400.0, SECONDS)
    assert found["flops_ratio_scratch"] == found["time_ratio_scratch"] == 1
    # Between evaluations after 17 and 34 steps, half way.
    assert found["flops_ratio_both"] == pytest.approx((60 + 25.5 * 10) / 400)
    assert found["time_ratio_both"] == pytest.approx((2 * 3 + 20 * 1 + 25.5 * 3) / (40 * 3))
    assert found["flops_share_both"] == pytest.approx(1.0)
    assert found["seconds_ratio_both"] == pytest.approx((2 * 3 + 20 * 1 + 34 * 3) / (40 * 3))
    # Not within the budget: at least the time of the whole arm.
    assert found["flops_ratio_alpha_0"] == found["time_ratio_alpha_0"] == 1
    slower = multilevel.saved(best, 400.0, SECONDS | {(2, 2): 5.0})
    assert slower["time_ratio_both"] == pytest.approx((2 * 3 + 20 * 5 + 25.5 * 3) / (40 * 3))
    assert slower["time_ratio_both"] > 1
    part_of_three = best["both"].parts[1]._replace(validation=np.array([5.0]))
    late = {"scratch": best["scratch"], "alpha_0": Trained(None, (
        part_of_three, best["alpha_0"].parts[1],
    ))}  # fmt: skip
    found = multilevel.saved(late, 400.0, SECONDS | {(2, 2): 5.0})
    assert found["time_ratio_alpha_0"] == pytest.approx((20 * 5 + 34 * 3) / (40 * 3))


def test_starts_are_held_against_an_untrained_one_at_the_rate_of_the_cycle():
    config = replaced(small(), {"cycle.rates": (1e-3, 2e-3)})

    def run_of(first):
        parts = [
            Part(Phase(level, "start", 2, 1.0), np.ones(2), np.ones(2), losses, losses, 0.0, own)
            for level, losses, own in (
                (0, np.array([9.0, 9.0]), np.full(3, 9.0)), (1, np.array([8.0, 0.5]), first)
            )
        ]  # fmt: skip
        return Trained(None, tuple(parts))

    near = np.array([-0.1, 0.0, 0.1])  # of three test examples
    firsts = {"both": 2.0 + near, "growth": 4.5 - 2 * near, "noise": 5.0 + 2 * near}
    found = {(name, 2e-3): run_of(first) for name, first in firsts.items()}
    found |= {(name, 1e-3): run_of(7.0 + near) for name in firsts}
    metrics = multilevel.starts(config, found, {"both": found["both", 2e-3]})
    half = 4.302653 * 0.1 / np.sqrt(3)
    wanted = {}
    for name, mean, width in (("coalesced", 3.0, half), ("fresh", 0.5, 4 * half)):
        for end, own in (("", mean), ("_low", mean - width), ("_high", mean + width)):
            wanted[f"{name}_over_untrained{end}"] = own
    assert metrics == pytest.approx(wanted)


def test_neighbours_are_layers_in_turn_and_heads_of_one_layer():
    layers = np.array([[1, 0.9, 0.2, 0.3], [0.9, 1, 0.7, 0.1], [0.2, 0.7, 1, 0.8],
                       [0.3, 0.1, 0.8, 1]])  # fmt: skip
    heads = np.random.default_rng(0).uniform(size=(8, 8))  # two of each layer
    heads = (heads + heads.T) / 2
    found = multilevel_similarity.neighbours_apart(Alike(layers, heads))
    assert found["neighbour_cka_layers"] == pytest.approx((0.9 + 0.7 + 0.8) / 3 - 0.6 / 3)
    near = [heads[0, 1], heads[2, 3], heads[4, 5], heads[6, 7]]
    rest = (heads[np.triu_indices(8, 1)].sum() - sum(near)) / 24
    assert found["neighbour_cka_heads"] == pytest.approx(np.mean(near) - rest)


def test_what_training_adds_to_neighbours_is_held_against_another_start():
    rng = np.random.default_rng(0)
    trained, start, other = (
        Alike(rng.uniform(size=(4, 4)), rng.uniform(size=(8, 8))) for _ in range(3)
    )
    apart = multilevel_similarity.neighbours_apart
    found = multilevel_similarity.of_training(trained, start, other)
    for parts in ("layers", "heads"):
        name = f"neighbour_cka_{parts}"
        ends = [apart(own)[name] for own in (trained, start, other)]
        assert [found[f"{name}{end}"] for end in ("", "_untrained", "_other")] == ends
        assert found[f"neighbour_gain_{parts}"] == pytest.approx(ends[0] - ends[1])
        assert found[f"neighbour_gain_{parts}_other"] == pytest.approx(ends[2] - ends[1])


def test_what_training_adds_has_an_interval_by_leaving_out_blocks_of_examples(monkeypatch):
    """Ratios of layers' sums stand for CKA; of three examples with two rows each no two agree."""
    rng = np.random.default_rng(0)

    def alike(parts):
        one = np.asarray(parts.layers).mean((1, 2))
        return Alike(np.ones((2, 2)) * one[0], np.ones((2, 2)) * one[0])

    def apart(found):
        own = float(found.layers[0, 0])
        return {"neighbour_cka_layers": own, "neighbour_cka_heads": 2 * own}

    monkeypatch.setattr(multilevel_similarity, "alike", alike)
    monkeypatch.setattr(multilevel_similarity, "neighbours_apart", apart)
    models = [Parts(rng.normal(size=(2, 6, 1)), np.zeros((2, 1, 6, 1))) for _ in range(3)]
    found = multilevel_similarity.jackknifed(models, 3)
    # Of a mean the jackknife is Student's interval over the means of the blocks.
    own, start, other = (model.layers[0].reshape(3, 2).mean(1) for model in models)
    for end, gained in (("", own - start), ("_other", other - start)):
        half = 4.302653 * gained.std(ddof=1) / np.sqrt(3)
        name = f"neighbour_gain_layers{end}"
        assert found[name] == pytest.approx(gained.mean())
        assert found[f"{name}_low"] == pytest.approx(gained.mean() - half)
        assert found[f"{name}_high"] == pytest.approx(gained.mean() + half)
    few = [Parts(own.layers[:, :4], own.heads[:, :, :4]) for own in models]
    assert len(multilevel_similarity.jackknifed(few, 2)) == len(found)


@pytest.mark.slow
def test_parts_of_a_decoder_are_its_blocks_outputs_and_its_heads():
    module = Llama(vocabulary=9, width=8, depth=3, heads=4, kv_heads=2, head_width=2, mlp=6)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 5)), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    found = multilevel_similarity.parts_of(module, params, tokens)

    @jax.jit
    def states(params):
        return module.apply(
            {"params": params}, tokens, return_hidden=True, mutable=["intermediates"]
        )

    whole, state = states(params)
    hidden = whole.hidden
    np.testing.assert_allclose(found.layers, hidden[1:].reshape(3, 10, 8), rtol=1e-5, atol=1e-5)
    wanted = state["intermediates"]["blocks"]["attention"]["heads"][0].reshape(3, 10, 4, 2)
    np.testing.assert_allclose(found.heads, wanted.swapaxes(1, 2), rtol=1e-5, atol=1e-5)
    own = multilevel_similarity.alike(found)
    assert own.layers.shape == (3, 3)
    assert own.heads.shape == (12, 12)
    expected = linear_cka(found.heads[1, 2], found.heads[0, 3])
    np.testing.assert_allclose(own.heads[6, 3], expected, rtol=1e-4)


@pytest.mark.slow
def test_parts_of_bert_are_its_blocks_outputs_and_its_heads():
    module = Bert(vocabulary=9, width=8, depth=3, heads=4, mlp=6, positions=5)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 5)), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    found = multilevel_similarity.parts_of(module, params, tokens)
    states = jax.jit(lambda own: module.apply({"params": own}, tokens, return_hidden=True))(params)
    wanted = states.hidden[1:].reshape(3, 10, 8)
    np.testing.assert_allclose(found.layers, wanted, rtol=1e-5, atol=1e-5)
    # What the first block adds to its input before the norm is its heads' outputs, projected.
    own = params["blocks"]["attention"]["out"]
    added = jnp.einsum("hnk,hkd->nd", found.heads[0], own["kernel"][0]) + own["bias"][0]
    query, key, value = (
        jnp.einsum(
            "btd,dhk->bthk", states.hidden[0], params["blocks"]["attention"][name]["kernel"][0]
        )
        + params["blocks"]["attention"][name]["bias"][0]
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(query, key, value)
    wanted = jnp.einsum("bthk,hkd->btd", mixed, own["kernel"][0]) + own["bias"][0]
    np.testing.assert_allclose(added, wanted.reshape(10, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_parts_of_a_vision_transformer_are_its_blocks_outputs_and_its_heads():
    """All of it in NumPy, with CKA."""
    module = ViT(width=8, depth=3, heads=4, mlp_ratio=2, patch_size=4)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images))["params"]
    params = jax.tree.map(
        lambda leaf: (0.1 + 0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    found = multilevel_similarity.parts_of(module, params, jnp.asarray(images))

    def norm(x, own):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * own["scale"] + own["bias"]

    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    patches = images.reshape(2, 2, 4, 2, 4).swapaxes(2, 3).reshape(2, 4, 16)
    x = patches @ params["patches"]["kernel"].reshape(16, 8) + params["patches"]["bias"]
    x = np.concatenate([np.tile(params["cls"], (2, 1, 1)), x], 1) + params["positions"]
    layers, heads = [], []
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        reads = norm(x, own["norm1"])
        query, key, value = (
            np.einsum("btd,dhk->bhtk", reads, own["qkv"]["kernel"][:, part])
            + own["qkv"]["bias"][part][:, None]
            for part in range(3)
        )
        share = special.softmax(query @ key.swapaxes(2, 3) / np.sqrt(2), axis=-1)
        head = share @ value
        x = x + np.einsum("bhtk,hkd->btd", head, own["out"]["kernel"]) + own["out"]["bias"]
        hidden = norm(x, own["norm2"]) @ own["mlp_in"]["kernel"] + own["mlp_in"]["bias"]
        hidden = hidden * special.ndtr(hidden)  # GELU
        x = x + hidden @ own["mlp_out"]["kernel"] + own["mlp_out"]["bias"]
        layers.append(x.reshape(10, 8))
        heads.append(head.swapaxes(0, 1).reshape(4, 10, 2))
    np.testing.assert_allclose(found.layers, layers, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.heads, heads, rtol=1e-4, atol=1e-4)

    def cka(parts):
        grams = [own @ own.T for own in (x - x.mean(0) for x in parts)]
        grams = np.stack([own.ravel() / np.linalg.norm(own) for own in grams])
        return grams @ grams.T

    own = multilevel_similarity.alike(found)
    np.testing.assert_allclose(own.layers, cka(layers), rtol=1e-3)
    np.testing.assert_allclose(own.heads, cka([x for layer in heads for x in layer]), rtol=1e-3)


@pytest.mark.slow
def test_a_bert_is_made_small(monkeypatch):
    config = override(read("configs/merging/multilevel_bert_pydocs.py"), {
        "text.length": 8, "text.vocabulary": 32, "text.windows": 4, "model.width": 8,
        "model.mlp": 8, "train.batch_size": 2, "train.steps": 40,
    })  # fmt: skip
    monkeypatch.setattr(small_lm, "read_text", lambda config: text())
    given = multilevel_problems.problem(config)
    assert given.unit == "nats a hidden token"
    full = multilevel_training.untrained(config, given, (1, 1))
    small_one = coalesce(full, groups(config, ARMS["both"], full)[0])
    wanted = multilevel_training.untrained(config, given, (2, 2))
    assert jax.tree.map(np.shape, small_one) == jax.tree.map(np.shape, wanted)
    losses = {
        shape: given.losses(of_shape(config, shape), params, "test")
        for shape, params in (((1, 1), full), ((2, 2), small_one))
    }
    for own in losses.values():
        assert own.shape == (4,)
        assert (abs(own - np.log(32)) < 1.5).all()
    assert given.parts(full).heads.shape == (4, 4, 4 * 8, 2)


@pytest.mark.slow
def test_a_run_of_all_arms_without_training(measure, monkeypatch, tmp_path):
    """Every phase leaves what it starts from; losses are the FLOPs that are left."""
    began = []

    @functools.cache
    def of_sizes(width, depth):
        module = small_lm.language_model(small()).clone(
            width=width, depth=depth, heads=width // 2, kv_heads=width // 2, mlp=width
        )
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int))
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), nn.unbox(shapes))[
            "params"
        ]

    def params(config):
        assert config.model.heads == config.model.width // 2
        return of_sizes(config.model.width, config.model.depth)

    def task(config):
        made = params(config)
        return gradient_task(
            init_variables=lambda key: {"params": jax.tree.map(jnp.asarray, made)},
            loss=lambda *_: Loss(jnp.zeros(())), optimizer=build_optimizer(
                dict(config.optimizer), steps=config.train.steps
            ), batches=lambda *_: None, evaluate=lambda state: {}, batch_spec={},
        )  # fmt: skip

    def fit(run, problem, configs, starts, name, flops):
        before, each = flops
        began.append((name, before, each, starts[0] is None))
        steps = np.array([1.0, configs[0].train.steps])
        spent = (before + each * steps) / 1000
        losses = [
            [20 - spent - 0.01 * i, 21 - spent - 0.01 * i, 20 - spent[0] + np.arange(3)]
            for i in range(len(configs))
        ]
        own = [params(c) if s is None else s for c, s in zip(configs, starts, strict=True)]
        for made, config in zip(own, configs, strict=True):
            assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, params(config))
        return own, steps, losses

    def losses(config, params, part):
        kernel = np.asarray(params["blocks"]["mlp_in"]["kernel"])
        return kernel.mean() + np.array([0.5, 1.0, 1.5]) + (part == "validation")

    def parts(params):
        rng = np.random.default_rng(0)
        return Parts(*(jnp.asarray(rng.normal(size=s)) for s in ((4, 9, 3), (4, 4, 9, 2))))

    monkeypatch.setattr(
        multilevel, "problem", lambda config: Problem(task, losses, parts, "nats", 3)
    )
    monkeypatch.setattr(multilevel, "costs", lambda config, given: FLOPS)
    monkeypatch.setattr(multilevel, "seconds", lambda config, given: SECONDS)
    monkeypatch.setattr(multilevel_training, "_fit", fit)
    metrics, holds = measure(FILE, SMALL)
    assert len(holds) == len(multilevel.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # The first steps of the full model are those of all arms that have them.
    assert ("both_0", 0.0, 10.0, True) in began
    assert not {"three_0", "depth_0", "width_0"} & {name for name, *_ in began}
    assert ("stacking_0", 0.0, 6.0, True) in began
    assert ("both_1", 20.0, 2.0, False) in began
    assert ("both_2", 60.0, 10.0, False) in began
    assert ("growth_0", 0.0, 2.0, True) in began
    # Kernels of ones: coalesced, inputs are summed, and copies share them again.
    assert metrics["loss_both"] == pytest.approx(metrics["loss_scratch"])
    assert metrics["loss_growth"] == pytest.approx(0.5 + 1.0)
    assert metrics["gain_growth"] == pytest.approx(0.5)
    assert metrics["flops_share_both"] == pytest.approx(1.0, abs=0.03)
    assert metrics["tries_scratch"] == metrics["tries_both"] == 3
    assert metrics["flops_ratio_scratch"] == 1.0
    assert metrics["seconds_ratio_both"] == pytest.approx((2 * 3 + 20 * 1 + 34 * 3) / (40 * 3))
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(multilevel.CAPTIONS)


@pytest.mark.slow
def test_a_phase_starts_where_it_is_told_and_records_cumulative_flops(tmp_path):
    config = multilevel_pydocs.get_config()
    config = replaced(of_shape(override(config, SMALL), (4, 4)), {
        "optimizer.learning_rate": 0.0, "optimizer.warmup_steps": 0, "train.steps": 3,
        "train.eval_every": 2, "train.log_every": 1, "train.checkpoint_every": 3,
    })  # fmt: skip
    made = text()

    def losses(own, params, part):
        return np.array([float(np.asarray(params["norm"]["scale"])[0])]) + (part == "validation")

    module = small_lm.language_model(config)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    starts = [
        jax.tree.map(lambda leaf, s=s: np.full(leaf.shape, s, np.float32), shapes["params"])
        for s in (0.25, 0.5)
    ]
    run = RunDirectory(tmp_path / "run", config.to_dict(), config_name=FILE)
    problem = Problem(lambda own: small_lm.task(own, made), losses, None, "nats", 4)
    params, steps, found = multilevel_training._fit(
        run, problem, [config, config], starts, "some_1", (100.0, 7.0)
    )
    run.close()
    for own, start in zip(params, starts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, own, start)
    np.testing.assert_array_equal(steps, [2, 3])
    wanted = [[[0.25, 0.25], [1.25, 1.25]], [[0.5, 0.5], [1.5, 1.5]]]  # test, validation
    np.testing.assert_allclose([own[:2] for own in found], wanted)
    np.testing.assert_array_equal([own[2] for own in found], [[0.25], [0.5]])
    lines = (tmp_path / "run" / "methods" / "some_1" / "metrics.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    assert [line["eval/flops"] for line in shown if "eval/flops" in line] == [114.0, 121.0]
    assert [line["train/flops"] for line in shown if "train/flops" in line] == [107.0, 114.0, 121.0]
