"""Programs are compiled once a shape, and read parameters as arguments.

What is measured again, on another state, other episodes or other data of the same shape, compiles
nothing; no program that is compiled holds a large array as a constant.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import registry
from experiments.common import small_lm
from experiments.common.encoders import build_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.fewshot import common
from experiments.hydra import methods
from experiments.hydra.evaluator import TransferEvaluator
from experiments.kernels import regression, width
from rml import attention
from rml.fewshot import Setting, find_method
from rml.models.attention import attend
from rml.training import CompiledTask, Progress, RunDirectory, initial_state, make_mesh
from tests.system.two_steps import SHORT, override, read

LARGEST_CONSTANT = 2**15  # bytes; parameters of the smallest model are more


class Compilations(logging.Handler):
    """Names of the programs that are compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the name that a line of JAX's log has."""
        words = record.getMessage().split()
        if words[0] == "Compiling":
            self.names.append(words[1])


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that are compiled in a block."""
    handler, logger = Compilations(), logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield handler.names
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@pytest.fixture(autouse=True)
def no_large_constants() -> Iterator[None]:
    """Makes it an error that a program holds a large array."""
    before = jax.config.jax_captured_constants_warn_bytes
    jax.config.update("jax_captured_constants_warn_bytes", LARGEST_CONSTANT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "A large amount of constants were captured")
            yield
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", before)


def compile_nothing_again(call: Callable[[int], Any]) -> None:
    """Calls a function for two cases, of which the second must find everything compiled."""
    with compilations() as first:
        call(0)
    assert first
    with compilations() as second:
        call(1)
    assert second == []


def other(state: Any, case: int) -> Any:
    """A state of other values."""
    change = lambda leaf: leaf * (1 + case / 64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    return jax.tree.map(change, state)


TASKS = {
    "contrastive": "configs/contrastive/simclr_digits.py",
    "hydra": "configs/hydra/hydra_digits.py",
    "few-shot": "configs/fewshot/base_digits.py",
    "kernels": "configs/kernels/classification_digits.py",
    "retrieval": "configs/retrieval/contriever_pydocs_random.py",
}
TEXTS = {
    "data.train": "train[:2%]", "data.validation": "validation[:2%]", "tokens.vocabulary": 512,
    "evaluation.validation_queries": 8, "evaluation.max_length": 32, "queue.size": 256,
    "model.depth": 1, "model.width": 64, "model.heads": 4, "model.mlp": 128,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", TASKS)
def test_a_second_evaluation_compiles_nothing(family):
    path = TASKS[family]
    config = override(read(path), TEXTS if family == "retrieval" else {})
    task = registry.find_experiment(config.experiment).task(config)
    CompiledTask(task, make_mesh())  # its constants are looked at
    states = [other(initial_state(task, seed=0), case) for case in range(2)]
    compile_nothing_again(lambda case: task.evaluate(states[case]))


@pytest.mark.slow
def test_a_second_encoder_is_compared_without_compiling():
    config = read(TASKS["contrastive"])
    model = build_encoder(config)
    evaluator = ImageEvaluator(model, config)
    start = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
    features = [evaluator.features(other(start, case)) for case in range(2)]
    compile_nothing_again(lambda case: evaluator.compare(features[case], features[1 - case]))


@pytest.mark.slow
def test_a_second_hydra_is_measured_without_compiling():
    config = override(read(TASKS["hydra"]), {"transfer.name": "digits"})
    evaluator = TransferEvaluator(methods.build_model(config, "hydra"), config)
    start = initial_state(methods.task(config, "hydra"), seed=0).variables

    def measure(case: int) -> None:
        variables = other(start, case)
        evaluator.measure(variables, evaluator.features(variables))

    other(start, 1)
    compile_nothing_again(measure)


@pytest.mark.slow
def test_a_second_batch_of_episodes_compiles_nothing():
    config = override(read("configs/fewshot/compare_digits.py"), {"compared": ("simple_shot",)})
    x = jnp.asarray(np.random.default_rng(0).standard_normal((200, 8)), jnp.float32)
    labels, setting = jnp.arange(200) % 8, Setting(3, 2, 4)
    methods = [partial(find_method(name)) for name in ("simple_shot", "transductive_clustering")]

    def measure(case: int) -> None:
        drawn = common.draw_episodes(config, (x, labels), setting, count=16, seed=case)
        common.choose(config, setting, (x * (1 + case), labels))
        for method in methods:
            common.measure(config, method, x, drawn, setting)

    compile_nothing_again(measure)


@pytest.mark.slow
def test_a_second_table_of_the_same_shape_compiles_nothing(tmp_path, monkeypatch):
    path = "configs/kernels/regression_tables.py"
    config = override(read(path), SHORT[path])
    rng = np.random.default_rng(0)
    run = RunDirectory(tmp_path / "run", config.to_dict())
    monkeypatch.setattr(regression, "draw_correlations", lambda *_: None)  # once a table

    def measure(case: int) -> None:
        with jax.enable_x64(True):
            table = rng.standard_normal((60, 3)), rng.standard_normal((60, 1))
            regression.run_table(config, run, f"table{case}", table, Progress(quiet=True))

    compile_nothing_again(measure)
    run.close()


@pytest.mark.slow
def test_a_second_machine_of_the_same_widths_compiles_nothing(tmp_path, monkeypatch):
    path = "configs/kernels/width_diabetes.py"
    config = override(read(path), SHORT[path])
    monkeypatch.setattr(width, "draw", lambda *_: None)
    rng = np.random.default_rng(0)

    def measure(case: int) -> None:
        with jax.enable_x64(True):
            x, y = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
            g = jnp.asarray(x @ x.T / 3 + np.eye(4))
            config.seed = case
            width.linear_error(config, g)
            width.measure(config, None, g, jnp.asarray(y))

    compile_nothing_again(measure)


@pytest.mark.slow
def test_a_second_language_model_reads_text_without_compiling():
    config = read("configs/attention/combiner.py")
    config.model.depth = 1
    module = small_lm.language_model(config)
    windows = np.random.default_rng(0).integers(0, config.text.vocabulary, (4, 9))
    start = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    seeds = [other(start, case) for case in range(4)]
    compile_nothing_again(
        lambda case: small_lm.nats(config, attend, seeds[2 * case : 2 * case + 2], windows + case)
    )


@pytest.mark.slow
def test_a_second_sample_of_examples_compiles_nothing():
    def measure(case: int) -> None:
        keys = jax.random.split(jax.random.key(case), 3)
        query, others = attention.draw_inputs(keys[0], 60, keys=3, d=4)
        for model in attention.MODELS:
            weights = attention.draw_weights(model, keys[1], count=8, scale=0.5, keys=3, d=4)
            gram, cross = attention.grams(model, weights, query, others, train=40, blocks=2)
            values = jax.random.normal(keys[2], (60, 2))
            attention.learning_curve(gram, cross, values, (1e-3, 1e-1), (20, 40))

    compile_nothing_again(measure)


def test_a_constant_and_a_second_program_are_seen():
    large = jnp.ones((LARGEST_CONSTANT, 2))
    with pytest.raises(UserWarning, match="constants were captured"):
        jax.jit(lambda x: x + large)(large)
    with pytest.raises(AssertionError, match="jit"):
        compile_nothing_again(lambda case: jax.jit(lambda x: x + 1)(jnp.zeros(3 + case)))
