"""The bed of experts: one encoder, pretrained once, fine-tuned on eight tasks.

A vision transformer learns half of the characters of every script; an encoder of texts comes with
pretrained weights. A task's head is the class means of the base's features and stays frozen, as a
text encoder's would, so that the base is above chance. All experts are fine-tuned as one program.
Recipes that merge read the bed of another run, or train their own. The setting is that of Ilharco
et al., arXiv:2212.04089; model, data and margins are this repository's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.encoders import TOKENIZER, image_encoder, read_run, restore
from experiments.merging.finetuning import (
    finetuned,
    finetuning,
    head_of,
    hits,
    pretrained_base,
)
from experiments.merging.networks import network, of_texts, reads_texts
from experiments.merging.tasks import Images, ImageTask, joined, open_tasks
from rml.encoder import ImageEmbedder
from rml.errors import UserError, local_path
from rml.ops import trees
from rml.retrieval import TextEmbedder
from rml.training import Claim, Progress, RunDirectory, Task, TrainState, make_mesh
from rml.training.config_file import as_written, check_complete, differences, list_differences

EXPERIMENT = "merging.bed"
SOURCE = "a target of this repository on this data, not a paper's"
CLAIMS = (
    Claim("On its own task an expert is above the base by 10 points in the mean",
          "own_over_base", ">=", 0.10, SOURCE, stated="2026-11-26", null="other_over_base",
          says="Fine-tuned on its task, an expert changes accuracy by {mean:+.1p} points over the "
          "base ({own:.1%} against {base:.1%})"),
    Claim("Experts are right on 85% of their own test images or texts in the mean",
          "own", ">=", 0.85, SOURCE, stated="2026-11-26", null="base",
          says="Experts are right on {mean:.1%} of the test examples of their own tasks"),
)  # fmt: skip
CAPTIONS = {
    "experts.png": "Test accuracy (%) of base and experts (rows) on each task (columns).",
}
PICTURE = "experts.png"
OTHER = ("experiment", "mesh", "evaluation")
"""Keys of a bed's config that experts do not depend on."""


class Bed(NamedTuple):
    """A base, its experts and their tasks.

    Attributes:
      config: Config that it was trained with.
      base: Parameters of the base.
      experts: Parameters of all experts, stacked in the order of the tasks.
      heads: Frozen heads [tasks, classes, d]; rows of zeros are classes that a task lacks.
      tasks: Tasks by name, in their order.
    """

    config: Any
    base: Any
    experts: Any
    heads: jax.Array
    tasks: dict[str, ImageTask]

    @property
    def module(self) -> Any:
        """The encoder, which gives features of images."""
        return network(self.config)

    def alone(self, name: str) -> "Bed":
        """The bed with one task only, and its expert."""
        at = np.array([list(self.tasks).index(name)])
        return self._replace(
            experts=take(self.experts, at), heads=self.heads[at], tasks={name: self.tasks[name]}
        )

    def images(self, part: str) -> Images:
        """Images of a part of all tasks, at most `evaluation.most` of each."""
        return joined(self.tasks, part, self.config.evaluation.most)


take = jax.jit(trees.take_tree)
"""The model at a place of stacked ones, or several, in one program."""
stack = jax.jit(trees.stack_trees)
"""Models stacked, in one program."""
subtract = jax.jit(lambda one, other: jax.tree.map(jnp.subtract, one, other))
"""The difference of two models, in one program."""


@functools.partial(jax.jit, static_argnames="count")
def repeated(tree: Any, count: int) -> Any:
    """A tree stacked with itself."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


@jax.jit
def ones_like(tree: Any) -> Any:
    """A tree of ones: Fishers with which merging is an average by weights."""
    return jax.tree.map(jnp.ones_like, tree)


def of_bed(config: Any) -> dict[str, str]:
    """What recipes on a bed read, their `READS`: see `experiments.claims.runs_of`."""
    return {"bed.run": f"configs/merging/bed{'_texts' * reads_texts(config)}.py"}


def task(config: Any) -> Task:
    """The training problem of all experts together; starts and heads are those of `make_bed`."""
    tasks = functools.cache(lambda: list(open_tasks(config).values()))
    return finetuning(
        config, len(config.tasks), lambda: [own.train for own in tasks()],
        lambda: [own.validation for own in tasks()],
    )  # fmt: skip


def encoder(config: Any, state: TrainState, *, expert: str = "") -> ImageEmbedder | TextEmbedder:
    """The features of images or texts of the base, or of the expert on the task of a name."""
    names = sorted(config.tasks)
    if expert and expert not in names:
        raise UserError(f"expert is {expert!r}, expected one of: {', '.join(names)}")
    at = names.index(expert) if expert else 0
    params = take(state.params if expert else state.extra["base"], at)
    module = network(config)
    if reads_texts(config):
        return TextEmbedder(
            module.encoder, {"params": params["encoder"]}, of_texts(config.model.name).tokenizer,
            config.tokens.length, mesh=make_mesh(config.mesh),
        )  # fmt: skip
    chosen = state.replace(params=params, model_state={}, ema_params=None)
    return image_encoder(module, config, chosen, lambda v, x: module.apply(v, x))


def make_bed(config: Any, run: RunDirectory) -> Bed:
    """Trains base and experts in a run directory, or takes up what it holds."""
    tasks = open_tasks(config)
    base = pretrained_base(config, run)
    heads = jnp.stack([head_of(config, base, own.train) for own in tasks.values()])
    sources = [own.train for own in tasks.values()]
    validation = [own.validation for own in tasks.values()]
    experts = finetuned(
        config, run, sources, validation, starts=repeated(base, len(tasks)), base=base,
        heads=heads,
    )  # fmt: skip
    if reads_texts(config):  # as `rml.load` expects of an encoder of texts
        of_texts(config.model.name).tokenizer.save(str(run.path / TOKENIZER))
    return Bed(config, base, experts, heads, tasks)


def open_bed(config: Any, run: RunDirectory) -> Bed:
    """The bed that `bed.run` of a config names, or one that is trained within this run.

    Args:
      config: A recipe's config, whose other keys are those of a bed's config too.
      run: The recipe's run directory.

    Raises:
      UserError: The directory holds no run of a bed, one of other values of these keys, or one
        that has not ended.
    """
    if not config.bed.run:
        return for_each(run, ["bed"], lambda _, inner: ({}, make_bed(config, inner)))["bed"][1]
    directory = local_path(config.bed.run, "bed.run")
    read = read_run(directory, "bed.run")
    if read.experiment != EXPERIMENT:
        raise UserError(f"bed.run is a run of {read.experiment}, expected one of {EXPERIMENT}")
    there = {key: value for key, value in read.to_dict().items() if key not in OTHER}
    here = as_written(config.to_dict())
    differing = differences(there, {key: here[key] for key in there if key in here})
    if differing:
        raise UserError(
            f"bed.run is {str(directory)!r}, a bed of another config; expected the same values: "
            f"{list_differences(differing)}"
        )
    check_complete(directory, "bed.run")
    state = restore(directory, task(config))
    base, heads = take(state.extra["base"], 0), state.extra["head"]
    return Bed(config, base, state.params, heads, open_tasks(config))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the bed, judges every expert on every task, draws."""
    bed = make_bed(config, run)
    test, progress = bed.images("test"), Progress()
    table = accuracies(bed, test)
    names = list(bed.tasks)
    for name, row in zip(["base", *names], table, strict=True):
        progress.note(f"{name}: {', '.join(f'{100 * x:.1f}' for x in row)}")
    own = np.diagonal(table[1:])
    other = np.array([np.delete(table[1:, i], i).mean() for i in range(len(names))])
    metrics = {
        "base": table[0].mean(), "own": own.mean(), "own_over_base": (own - table[0]).mean(),
        "other_over_base": (other - table[0]).mean(),
    } | {f"own_{name}": own[i] for i, name in enumerate(names)}  # fmt: skip
    metrics |= {f"base_{name}": table[0, i] for i, name in enumerate(names)}
    figures.heatmap(
        run.figure("experts.png"), 100 * table, ["base", *names], names, xlabel="task",
        ylabel="model", value_label="test accuracy (%)",
    )  # fmt: skip
    return {name: float(value) for name, value in metrics.items()}


def accuracies(bed: Bed, images: Images) -> np.ndarray:
    """Accuracy of the base and of each expert on each task, [1 + tasks, tasks]."""
    models = [bed.base, *(take(bed.experts, i) for i in range(len(bed.tasks)))]
    each = [hits(bed.module, own, bed.heads, images, bed.config.head.scale) for own in models]
    task = np.asarray(images.task)
    return np.array(
        [[np.asarray(own)[task == i].mean() for i in range(len(bed.tasks))] for own in each]
    )
