"""Many runs as one program: each trains as it would alone, on any mesh, whenever it is stopped."""

import itertools
import re
from functools import cache, partial

import chex
import flax.linen as nn
import grain
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.contrastive import simclr_digits
from experiments.common.evaluators import ImageEvaluator
from experiments.common.many import differences, each, many, pretrain_many, unstack
from experiments.contrastive import simclr
from rml.errors import UserError
from rml.losses import nt_xent
from rml.models.conv import conv2d
from rml.training import NonFiniteLoss, RunDirectory, fit, initial_state, make_mesh, read_metrics
from tests.training import conftest

STEPS = 8
BASE = dict(
    seed=0,
    optimizer={**conftest.OPTIMIZER, "warmup_steps": 3, "weight_decay": 0.01},
    width=16,
    order=(1, 2),
)
ONE = make_mesh({"data": 1}, jax.devices()[:1])


def config(**changes):
    changed = ConfigDict(BASE)
    changed.update_from_flattened_dict(changes)
    return changed


CONFIGS = [
    config(seed=3),
    config(
        **{
            "seed": 5, "optimizer.learning_rate": 0.03, "optimizer.weight_decay": 0.1,
            "optimizer.final_scale": 0.5,
        }
    ),
]  # fmt: skip


def task_of(config):
    """The classifier of the digits, each seed with a data order of its own."""
    task = conftest.build_task(STEPS, width=config.width, **config.optimizer)

    def batches(part=0, parts=1):
        source = grain.MapDataset.source(conftest.Batches(None, part, parts))
        return source.shuffle(seed=config.seed).repeat().to_iter_dataset()

    return task.replace(batches=batches)


@cache
def task_of_all():
    """The runs of all of `CONFIGS`; JAX compiles the programs of one task once."""
    return many(task_of, CONFIGS)


def train(path, steps=STEPS):
    """Trains all of `CONFIGS` at once on one device."""
    run = RunDirectory(path, {"experiment": "toy"})
    try:
        return fit(task_of_all(), run, steps=steps, mesh=ONE, log_every=1)
    finally:
        run.close()


def losses(path, name="train/loss"):
    return [line[name] for line in read_metrics(path / "metrics.jsonl") if name in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory and last state of the runs, not interrupted."""
    path = tmp_path_factory.mktemp("whole")
    return path, train(path)


@pytest.mark.slow
def test_each_run_trains_as_it_would_alone(whole):
    path, state = whole
    alone = []
    for i, own in enumerate(CONFIGS):
        task = task_of(own)
        single, step = initial_state(task, seed=own.seed), jax.jit(task.step)
        assert (unstack(state, i).key == single.key).all()
        alone.append([])
        for _, batch in zip(range(STEPS), task.batches(), strict=False):
            single, metrics = step(single, batch)
            alone[i].append(float(metrics["loss"]))
        np.testing.assert_allclose(losses(path, f"train/loss/{i}"), alone[i], rtol=1e-5)
        chex.assert_trees_all_close(unstack(state, i).params, single.params, rtol=1e-4, atol=1e-6)
        assert losses(path, f"eval/norm/{i}") == [
            pytest.approx(task.evaluate(single)["norm"], rel=1e-5)
        ]
    np.testing.assert_allclose(losses(path), np.mean(alone, 0), rtol=1e-5)


def test_metrics_of_all_runs_are_one_output_of_the_program(whole):
    """Compiling a program takes longer with every output: a thousand runs would take minutes."""
    task = task_of_all()
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    _, metrics = jax.eval_shape(task.step, state, task.batch_spec)
    assert metrics["loss"].shape == ()
    assert metrics["loss/"].shape == (len(CONFIGS),)
    assert not any(name.startswith("loss/") for name in metrics if name != "loss/")
    line = read_metrics(whole[0] / "metrics.jsonl")[0]
    assert {"train/loss", "train/loss/0", "train/loss/1"} <= set(line)
    assert "train/loss/" not in line


@pytest.mark.slow
def test_resumed_equals_uninterrupted(whole, tmp_path):
    path, state = whole
    train(tmp_path, steps=4)
    resumed = train(tmp_path)
    chex.assert_trees_all_equal(resumed.params, state.params)
    chex.assert_trees_all_equal(resumed.opt_state, state.opt_state)
    assert losses(tmp_path) == losses(path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_says_of_which_run(tmp_path):
    def poisoned(config):
        def batches(part=0, parts=1):
            poison = 1 if config.seed == CONFIGS[1].seed else None
            source = grain.MapDataset.source(conftest.Batches(poison))
            return source.repeat().to_iter_dataset()

        return task_of(config).replace(batches=batches)

    run = RunDirectory(tmp_path, {"experiment": "toy"})
    said = r"^loss is nan \(loss/1\) at step 2 \(batch 1\); "
    batches = many(poisoned, CONFIGS).batches
    with pytest.raises(NonFiniteLoss, match=said):
        fit(task_of_all().replace(batches=batches), run, steps=STEPS, mesh=ONE)


TWO = """
import json
import jax
from experiments.common.evaluators import ImageEvaluator
from experiments.common.many import each
from rml.training import CompiledTask, make_mesh, over_batch, use_mesh
from tests.training import test_many

task = test_many.many(test_many.task_of, test_many.CONFIGS)
compiled = CompiledTask(task, make_mesh())
state, losses = compiled.init(), []
for _, batch in zip(range(3), task.batches()):
    state, metrics = compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
    losses.append(metrics["loss/"].tolist())
shards = {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(state)}
alone = {len(leaf.devices()) for leaf in jax.tree.leaves(test_many.unstack(state, 1))}

axes = []
def total(x, axis_name):
    axes.append(axis_name)
    return x.sum() if axis_name is None else jax.lax.psum(x.sum(), axis_name)
spread = over_batch(total)
with use_mesh(make_mesh()):
    sums = [jax.jit(of)(jax.numpy.arange(8.0).reshape(2, 4)) for of in (spread, each(spread))]
print(json.dumps([losses, list(shards), list(alone), axes, [own.tolist() for own in sums]]))
"""


@pytest.mark.slow
def test_runs_are_shared_out_among_devices(forked, whole):
    found, shards, alone, axes, sums = forked(TWO, devices=2)
    single = [losses(whole[0], f"train/loss/{i}")[:3] for i in range(len(CONFIGS))]
    np.testing.assert_allclose(np.transpose(found), single, rtol=1e-6)
    assert (shards, alone) == ([1], [1])
    # A loss exchanges rows with other devices where a run has them, not where it lies on one.
    assert axes[0] == ["data"]
    assert set(axes[1:]) == {None}
    assert sums == [28, [6, 22]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "looped"), [("cpu", True), ("tpu", False)])
def test_runs_are_traced_once_as_the_platform_runs_them(kind, looped):
    traced = []
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=kind)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    run = each(lambda x: (traced.append(x), x @ x)[1])
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(run)(jax.numpy.ones((3, 4, 4)))
    assert len(traced) == 1
    assert {"scan", "while"}.isdisjoint(eqn.primitive.name for eqn in program.eqns) != looped


def test_each_process_reads_the_batches_of_its_runs():
    task = many(task_of, CONFIGS)

    def read(*part):
        return np.stack([batch["x"] for batch in itertools.islice(task.batches(*part), 4)])

    parts = [read(part, 2) for part in (0, 1)]
    assert (parts[0] != parts[1]).any()
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), read())


@pytest.mark.slow
def test_seeds_of_simclr_train_as_alone_and_are_judged_one_by_one(unchecked, monkeypatch, tmp_path):
    config = simclr_digits.get_config()
    config.update_from_flattened_dict({
        "model.widths": (4,), "model.kernel_sizes": (3,), "model.strides": (2,),
        "model.features": 16, "head.hidden": 16, "head.features": 8,
        "augment.order": ("random_erase",), "train.batch_size": 32, "train.steps": 3,
        "train.eval_every": 0, "train.log_every": 1, "optimizer.warmup_steps": 1,
    })  # fmt: skip

    def compare(self, trained, untrained):
        return {"seed": self.seed, "knn": self.knn(trained), "untrained": self.knn(untrained)}

    monkeypatch.setattr(ImageEvaluator, "compare", compare)
    run = RunDirectory(tmp_path, config.to_dict())
    first, second = pretrain_many(simclr.task, config, run, (0, 1))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert losses(tmp_path, "eval/knn/0") == [first["knn"]]
    assert losses(tmp_path, "eval/knn/1") == [second["knn"]]
    config.seed = 1
    task, alone = simclr.task(config), []
    state, step = initial_state(task, seed=1), jax.jit(task.step)
    assert task.evaluate(state)["knn"] == pytest.approx(second["untrained"], abs=0.003)
    for _, batch in zip(range(3), task.batches(), strict=False):
        state, metrics = step(state, batch)
        alone.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses(tmp_path, "train/loss/1"), alone, rtol=1e-5)
    assert task.evaluate(state)["knn"] == pytest.approx(second["knn"], abs=0.003)


def test_a_directory_holds_runs_of_the_same_seeds(monkeypatch, tmp_path):
    def train(*_):
        raise InterruptedError

    monkeypatch.setattr("experiments.common.many.train", train)
    run = RunDirectory(tmp_path, {"experiment": "toy"})

    def begin(seeds):
        next(pretrain_many(task_of, config(), run, seeds))

    with pytest.raises(UserError, match="seed is 4294967296"):
        begin([2**32])
    for seeds in ([], [3, 1, 3]):
        with pytest.raises(UserError, match=r"seeds is \[.*\], expected distinct seeds, at least"):
            begin(seeds)
    for seeds in (range(2), np.arange(2)):
        with pytest.raises(InterruptedError):
            begin(seeds)
    with pytest.raises(UserError, match=r"runs of the seeds \[0, 1\], expected \[0, 2\]; give"):
        begin((0, 2))


def test_seeds_are_all_that_keys_tell_apart():
    seeds = [2**31, 2**32 - 1]
    configs = [config(seed=seed) for seed in seeds]
    found = differences(configs)["seed"]
    assert (found.dtype, found.tolist()) == (np.uint32, seeds)
    state = initial_state(many(task_of, configs), seed=0)
    for i, seed in enumerate(seeds):
        assert unstack(state, i).key == jax.random.key(seed)
        assert jax.jit(jax.random.key)(found[i]) == jax.random.key(seed)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"a run's seed is {seed}, expected 0 to 4294967295"):
            differences([config(), config(seed=seed)])


def test_temperatures_are_an_axis(normal):
    a, b = (jax.numpy.asarray(normal(seed, 6, 4), np.float32) for seed in (0, 1))
    temperatures = np.array([0.1, 0.5], np.float32)
    together = jax.jit(jax.vmap(lambda t: nt_xent(a, b, temperature=t)))(temperatures)
    alone = [jax.jit(partial(nt_xent, temperature=float(t)))(a, b) for t in temperatures]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_convolutions_in_a_loop_have_the_fast_layout(channels, normal):
    def gradients(x, kernel):
        return jax.grad(lambda *own: jax.numpy.sin(conv2d(*own, strides=(2, 2))).sum(), (0, 1))(
            x, kernel
        )

    x, kernel = normal(0, 2, 8, 9, 9, channels), normal(1, 2, 3, 3, channels, 5)
    x, kernel = (jax.numpy.asarray(own, np.float32) for own in (x, kernel))
    loop = jax.jit(lambda *own: jax.lax.map(lambda one: gradients(*one), own))
    text = loop.lower(x, kernel).compile().as_text()
    layouts = set(re.findall(r"dim_labels=(\S+?)[,\s]", text))
    assert layouts == {"b01f_01io->b01f"}
    for i, found in enumerate(zip(*loop(x, kernel), strict=True)):
        chex.assert_trees_all_close(found, gradients(x[i], kernel[i]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, "width is 16 in one config and 8 in another"),
        ({"order": (2, 1)}, r"order is \(1, 2\) in one"),
        ({"optimizer.name": "lars"}, "optimizer.name is 'adamw' in one config and 'lars'"),
    ],
)
def test_what_may_not_differ(changes, message):
    with pytest.raises(UserError, match=message):
        many(task_of, [config(), config(**changes)])


def test_a_float_that_decides_the_program_is_named():
    configs = [config(), config(**{"seed": 1, "optimizer.ema_decay": 0.9})]
    with pytest.raises(UserError, match=r"optimizer\.ema_decay cannot differ among runs"):
        initial_state(many(task_of, configs), seed=0)


def test_other_errors_stay_themselves():
    def broken(config):
        task = task_of(config)
        return task.replace(init=partial(task.init, "one argument too many"))

    with pytest.raises(TypeError, match="positional"):
        initial_state(many(broken, CONFIGS), seed=0)


def test_no_config_and_a_missing_key():
    with pytest.raises(UserError, match="configs is empty"):
        differences([])
    other = ConfigDict({**BASE, "more": 1.0})
    with pytest.raises(UserError, match=r"more is .*absent.* in one config and 1\.0"):
        differences([config(), other])
