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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import registry
from experiments.common import small_lm
from experiments.common.encoders import build_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.distillation import ofakd_sides, ofakd_students, students
from experiments.fewshot import common
from experiments.hydra import methods
from experiments.hydra.evaluator import TransferEvaluator
from experiments.kernels import regression, width
from experiments.merging import compare_ways, finetuning, judging
from experiments.merging.bed import repeated
from experiments.sparsity import prosparse_training, prosparse_uses
from rml import attention
from rml.distillation import Network, Outputs, distill
from rml.evaluation import answer_scores, sliding_nats
from rml.fewshot import Setting, find_method
from rml.hydra import learn_gates
from rml.merging import choose_alpha, fuse_decode
from rml.models import MLP, Llama, Member
from rml.models.attention import attend
from rml.training import CompiledTask, Progress, RunDirectory, initial_state, make_mesh
from tests.claims import bed_of_patterns, drawn_students
from tests.claims.test_compare_merging import RECIPE
from tests.claims.test_prosparse import SMALL as PROSPARSE
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
    jax.clear_caches()  # another test in this process may have compiled the same
    with compilations() as first:
        call(0)
    assert first
    with compilations() as second:
        call(1)
    assert second == []


def compile_a_step_again(train: Callable[[int], Any]) -> None:
    """Trains for two cases, of which the second must compile one step and one first state alone."""
    with compilations() as first:
        train(0)
    assert first.count("jit(step)") == 1
    with compilations() as second:
        train(1)
    assert second == ["jit(step)", "jit(init)"]


def other(state: Any, case: int) -> Any:
    """A state of other values, by NumPy, which compiles nothing."""

    def change(leaf: Any) -> Any:
        if leaf.dtype != jnp.float32:
            return leaf
        return jax.device_put(np.asarray(leaf) * np.float32(1 + case / 64))

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

SPARSE = {
    "seeds": 2, "text.vocabulary": 64, "model.width": 8, "model.mlp": 8, "train.eval_every": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", TASKS)
def test_a_second_evaluation_compiles_nothing(family, request):
    if family == "retrieval":
        request.getfixturevalue("pydocs")  # prepared in this process it takes as long again
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
    start = jax.jit(partial(model.init, train=True))(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    features = [evaluator.features(other(start, case)) for case in range(2)]
    compile_nothing_again(lambda case: evaluator.compare(features[case], features[1 - case]))


@pytest.mark.slow
def test_an_equal_encoder_reads_images_without_compiling():
    config = override(read(TASKS["contrastive"]), {"model.widths": (4, 6)})
    init = jax.jit(partial(build_encoder(config).init, train=True))
    start = init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    trained = [other(start, case) for case in range(2)]
    compile_nothing_again(
        lambda case: ImageEvaluator(build_encoder(config), config).features(trained[case])
    )


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
def test_gates_of_other_features_are_learned_without_compiling():
    rng = np.random.default_rng(0)
    features = [jnp.asarray(rng.standard_normal((1200, 8)), jnp.float32) for _ in range(2)]
    labels = [np.arange(1200) % (4 + case) for case in range(2)]

    def learn(case: int) -> None:
        numbers = dict(learning_rate=0.1 + case / 8, temperature=0.1 + case / 8, penalty=0.1 + case)
        pairs = np.array([0, case]), np.array([1, 2])
        learn_gates(features[case], labels[case], *pairs, steps=1, **numbers)

    compile_nothing_again(learn)


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
            common.evaluate(config, method, x, drawn, setting)

    compile_nothing_again(measure)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "fitnet"])
def test_a_second_student_of_other_rates_is_taught_without_compiling(method):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 12, 6)).astype(np.float32)
    labels, student = jnp.arange(12) % 3, Network(MLP(hidden=(4,), features=3), classes=3)

    def teacher(x: jax.Array) -> Outputs:
        return Outputs(x[:, :3], x)

    def train(case: int) -> None:
        own = 1 + case / 8
        rates = {"learning_rate": 0.1 * own, "weight": own, "ratio": 0.5 * own}
        if method == "kd":
            rates["ratio"] = "trilateral"
            rates |= {"lookahead": 0.1 * own, "ratio_rate": 0.1 * own, "ratio_decay": 0.1 * own}
        own_images = jnp.asarray(images[case])
        distill(method, teacher, student, own_images, labels, key=jax.random.key(case), steps=2,
                batch_size=4, validation=(own_images, labels), **rates)  # fmt: skip

    compile_nothing_again(train)


@pytest.mark.slow
def test_a_second_long_text_of_other_weights_compiles_nothing():
    apply = jax.jit(lambda weights, x: weights[x] if x.dtype == jnp.int32 else x @ weights)
    rng = np.random.default_rng(0)

    def read(case: int) -> None:
        inner, outer = (
            partial(apply, jnp.asarray(rng.standard_normal(s), jnp.float32))
            for s in ((5, 8), (8, 5))
        )
        text = rng.integers(0, 5, 40).astype(np.int32)
        sliding_nats(inner, outer, text, window=16, stride=4, chunk=6)
        answer_scores(inner, outer, jnp.asarray(text), jnp.array([[0, case], [case, 2]]))

    compile_nothing_again(read)


@pytest.mark.slow
def test_a_second_table_of_the_same_shape_compiles_nothing(tmp_path, monkeypatch):
    path = "configs/kernels/regression_tables.py"
    config = override(read(path), SHORT[path] | {"model.depth": 1})
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
    # Kernel and shapes are those of the linear machine, which one program then serves as well.
    config = override(read(path), SHORT[path] | {"model.depth": 1, "model.kernel": "linear"})
    monkeypatch.setattr(width, "draw", lambda *_: None)
    rng = np.random.default_rng(0)

    def measure(case: int) -> None:
        with jax.enable_x64(True):
            x, y = rng.standard_normal((4, 3)), rng.standard_normal((4, 5))
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
            limit = jax.jit(attention.kernel(model, scale=0.5))
            limit(query, others, query[:40], others[:40])

    compile_nothing_again(measure)


@pytest.mark.slow
def test_a_second_bed_is_merged_in_every_way_without_compiling(monkeypatch):
    made = bed_of_patterns.put_in(monkeypatch)
    bed_of_patterns.put_in_plain(monkeypatch)
    config = bed_of_patterns.config_of("configs/merging/compare.py", **RECIPE)
    start = bed_of_patterns.made_bed(config, made)

    def measure(case: int) -> None:
        changes = {"seed": case, "dropped.rate": 0.9 - case / 64}
        for part in ("methods.adamerging.learning_rates", "mask.learning_rates", "addition.rates"):
            changes[part] = (0.01 + case / 64, 0.03 + case / 64)
        own = override(config, changes)
        bed = start._replace(base=other(start.base, case), experts=other(start.experts, 2 * case))
        validation, test = (judging.judged(bed, part) for part in ("validation", "test"))
        for way, _ in compare_ways.ways(own, bed, validation).values():
            judging.read(bed, test, way())
        compare_ways.twin(own, bed, validation, test)

    compile_nothing_again(measure)


@pytest.mark.slow
def test_all_experts_are_trained_by_one_program(monkeypatch, tmp_path):
    made = bed_of_patterns.put_in(monkeypatch)
    bed_of_patterns.put_in_plain(monkeypatch)
    config = bed_of_patterns.config_of("configs/merging/compare.py", **{"train.eval_every": 2})
    bed = bed_of_patterns.made_bed(config, made)
    sources, held_out = ([getattr(own, part) for own in made.values()]
                         for part in ("train", "validation"))  # fmt: skip

    def train(case: int) -> None:
        own = override(config, {"seed": case, "train.steps": 4 + 2 * case})
        run = RunDirectory(tmp_path / f"run{case}", own.to_dict())
        base = other(bed.base, case)
        finetuning.finetuned(
            own, run, sources, held_out, starts=repeated(base, 2), base=base, heads=bed.heads
        )
        run.close()

    compile_a_step_again(train)


@pytest.mark.slow
def test_all_students_of_a_kind_are_trained_and_read_by_one_program(tmp_path):
    values = {**drawn_students.FAMILIES, "train.batch_size": 4}
    config = override(read("configs/distillation/compare.py"), values)
    bed, family, kind = drawn_students.made_bed(), "mixer", "logits"

    def train(case: int) -> None:
        own = override(config, {"seed": case, "train.steps": 2 + 2 * case})
        run = RunDirectory(tmp_path / f"run{case}", own.to_dict())
        named = list(ofakd_sides.changes_of(own, kind, ["vit"]).items())
        changes = dict(named[3 * case : 3 * case + 3])
        found = students.train_students(
            own, run, f"{family}_{kind}", family, changes, bed,
            partial(ofakd_students.task, bed=bed, family=family, kind=kind, methods=("kd",)),
        )  # fmt: skip
        students.named(own, bed, family, [found], [name[:2] for name in changes])
        run.close()

    compile_a_step_again(train)


@pytest.mark.slow
def test_all_penalties_are_trained_by_one_program_and_read_by_another(tmp_path):
    config = override(read("configs/sparsity/prosparse.py"), PROSPARSE | SPARSE)
    rng = np.random.default_rng(0)
    drawn = {part: rng.integers(0, 64, 600).astype(np.int32) for part in small_lm.PARTS}
    text = small_lm.Text(None, drawn)
    start = jax.jit(small_lm.language_model(config).init)(
        jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )
    base = [other(nn.meta.unbox(start)["params"], case) for case in range(4)]
    windows = small_lm.held_out_windows(config, text)["test"]
    penalties = list(prosparse_training.penalties(config).items())
    found: list[Any] = []

    def train(case: int) -> None:
        own = override(config, {"seed": case, "continued.steps": 20 + 2 * case})
        run = RunDirectory(tmp_path / f"run{case}", own.to_dict())
        changes = dict(penalties[3 * case : 3 * case + 3])
        seeds = base[2 * case : 2 * case + 2]
        found.extend(prosparse_training.further(own, run, text, seeds, "relu", changes).values())
        run.close()

    compile_a_step_again(train)
    reader = prosparse_training.Reader(config)

    def measure(case: int) -> None:
        for params in found[3 * case : 3 * case + 3]:
            for threshold in (0.01, 0.02):
                least = reader.at_threshold(threshold * (1 + case))
                reader.read("relu", params, windows + case, least)
            prosparse_uses.thinned(reader, text, params, windows, 0.5 + case / 8)

    compile_nothing_again(measure)
    models = {"pro": found[0], "relu": found[1]}
    with compilations() as names:
        prosparse_uses.predicted(config, reader, text, models)
    assert names.count("jit(fitted)") == 1


@pytest.mark.parametrize("options", [{}, {"refine": 3}, {"active": "all"}])
def test_weights_of_other_logits_and_another_grid_are_chosen_without_compiling(options):
    rng = np.random.default_rng(0)
    drawn = [[jnp.asarray(rng.normal(size=shape), jnp.float32)
              for shape in ((5, 11), (2, 5, 11), (5, 11))] for _ in range(2)]  # fmt: skip

    def choose(case: int) -> None:
        grid = {"low": 0.1 * case, "high": 2.0 - case, "step": 0.5 - 0.25 * case}
        choose_alpha(*drawn[case], **grid, **options)

    compile_nothing_again(choose)


@pytest.mark.slow
def test_texts_go_on_by_another_weight_of_experts_without_compiling():
    module, tokens = Llama(vocabulary=7, width=4, depth=1, heads=2, mlp=4), jnp.zeros((1, 2), int)
    start = jax.jit(module.init)(jax.random.key(0), tokens)
    model, expert = Member(module, start), jax.tree.map(lambda leaf: 1 - leaf[None], start)
    written = []

    def write(case: int) -> None:
        found = fuse_decode(
            model, Member(module, expert, True), model, tokens, steps=4, alpha=2.0 * case
        )
        written.append(np.asarray(found.tokens))
        np.testing.assert_array_equal(found.alpha, np.full((1, 1, 4), 2.0 * case))

    compile_nothing_again(write)
    assert (written[0] != written[1]).any()


def test_a_constant_and_a_second_program_are_seen():
    large = jnp.ones((LARGEST_CONSTANT, 2))
    with pytest.raises(UserWarning, match="constants were captured"):
        jax.jit(lambda x: x + large)(large)
    with pytest.raises(AssertionError, match="jit"):
        compile_nothing_again(lambda case: jax.jit(lambda x: x + 1)(jnp.zeros(3 + case)))
