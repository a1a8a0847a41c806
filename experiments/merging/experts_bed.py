"""The bed of experts of every seed: one base, eight tasks with a thousand test examples each.

The base of images learns characters and icons that no task has, and is the same for all seeds; an
encoder of texts comes with pretrained weights. A task's head is the class means of the base's
features and stays frozen, as a text encoder's would. Experts of a seed are fine-tuned as one
program at a rate so low that their vectors can be added: the setting of Ilharco et al.,
arXiv:2212.04089. Half of the validation examples are learned from, where a method learns; the
others choose options.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.encoders import build_encoder
from experiments.common.many import on_one_device, replaced
from experiments.common.pretraining import train
from experiments.common.supervised import classification
from experiments.merging.bed import Bed, repeated, take
from experiments.merging.finetuning import finetuned, head_of, hits
from experiments.merging.judging import Part
from experiments.merging.networks import pretrained_texts, reads_texts
from experiments.merging.tasks import PARTS, Images, ImageTask, joined, open_tasks
from rml import data, models
from rml.errors import UserError
from rml.training import RunDirectory


class Seed(NamedTuple):
    """What one seed has.

    Attributes:
      number: The seed.
      bed: Base, experts, heads and tasks.
      parts: "validation" and "test", as models are judged on them.
      learned: Validation examples that a method may learn from; none of them is judged.
      kept: What several tries of one method share, such as Fishers, by name.
    """

    number: int
    bed: Bed
    parts: dict[str, Part]
    learned: Part
    kept: dict[str, Any]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made once for all tries of a seed; the last such thing is held."""
        if name not in self.kept:
            self.kept.clear()
            self.kept[name] = make()
        return self.kept[name]


class Experts:
    """Base, heads and tasks that all seeds share, and the experts of each seed when asked for.

    Attributes:
      names: The tasks, in their order.
    """

    def __init__(self, config: Any, run: RunDirectory):
        tasks = open_tasks(config) if reads_texts(config) else _image_tasks(config)
        _check_sizes(config, tasks)
        base = pretrained_texts(config) if reads_texts(config) else _pretrained(config, run)
        heads = jnp.stack([head_of(config, base, own.train) for own in tasks.values()])
        self.names = list(tasks)
        self._bed, self._run, self._config = Bed(config, base, None, heads, tasks), run, config
        count = config.evaluation.validation
        validation = joined(tasks, "validation", 2 * count)
        first = np.arange(len(validation.task)) % (2 * count) < count
        self._images = {
            "learned": jax.tree.map(lambda x: x[first], validation),
            "validation": jax.tree.map(lambda x: x[~first], validation),
            "test": joined(tasks, "test", config.evaluation.most),
        }
        self._made: dict[int, Seed] = {}  # with experts in the host's memory
        self._held: Seed | None = None

    def of(self, seed: int) -> Seed:
        """The experts of a seed, trained now unless they are there; one seed's are on a device."""
        if self._held is None or self._held.number != seed:
            self._held = None  # before others take its memory
            own = self._made.get(seed) or self._make(seed)
            experts = jax.tree.map(jnp.asarray, own.bed.experts)
            self._held = own._replace(bed=own.bed._replace(experts=experts), kept={})
        return self._held

    def _make(self, seed: int) -> Seed:
        inner = self._run.of_method(f"experts_{seed}")
        bed, tasks = self._bed, list(self._bed.tasks.values())
        experts = finetuned(
            replaced(self._config, {"seed": seed}), inner, [own.train for own in tasks],
            [own.validation for own in tasks], starts=repeated(bed.base, len(tasks)),
            base=bed.base, heads=bed.heads,
        )  # fmt: skip
        inner.close()
        own = bed._replace(config=replaced(self._config, {"seed": seed}), experts=experts)
        judged = {name: _judged(own, images) for name, images in self._images.items()}
        learned = judged.pop("learned")
        own = own._replace(experts=jax.device_get(experts))
        self._made[seed] = Seed(seed, own, judged, learned, {})
        return self._made[seed]

    def task_of(self, part: str) -> list[str]:
        """The name of the task of every example of a part."""
        return [self.names[i] for i in np.asarray(self._images[part].task)]


def _judged(bed: Bed, images: Images) -> Part:
    """Examples with what a right answer to each counts, by the accuracy of its task's expert."""
    task = np.asarray(images.task)
    count, scale = len(bed.tasks), bed.config.head.scale
    experts = np.zeros(count)
    for i in range(count):
        own = jax.tree.map(lambda x, i=i: x[task == i], images)
        experts[i] = np.mean(hits(bed.module, take(bed.experts, i), bed.heads, own, scale))
    weights = 1 / (len(task) * np.maximum(experts, 1e-9))
    return Part(images, jnp.asarray(weights[task], jnp.float32), experts)


def _check_sizes(config: Any, tasks: dict[str, ImageTask]) -> None:
    """Raises `UserError` unless every task has the examples that it is judged on."""
    needed = {"validation": 2 * config.evaluation.validation, "test": config.evaluation.most}
    for name, own in tasks.items():
        for part, count in needed.items():
            if (there := len(getattr(own, part))) < count:
                raise UserError(f"tasks.{name}.{part} has {there} examples, expected {count}")


def _pretrained(config: Any, run: RunDirectory) -> Any:
    """The base: a classifier of all that `pretraining.of` names, without its head."""
    own = config.copy_and_resolve_references()
    options = own.pretraining
    own.train.update({"steps": options.steps, "batch_size": options.batch_size})
    own.train.checkpoint_every = options.steps
    own.optimizer.update({k: options[k] for k in ("learning_rate", "warmup_steps")})
    sources = {part: _joined_classes(config, part) for part in ("train", "test")}
    model = build_encoder(config, models.Classifier(sources["train"].num_classes, cosine=True))
    problem = classification(
        own, model, train=lambda: sources["train"], held_out=lambda: sources["test"]
    )
    inner = run.of_method("base")
    state = on_one_device(train(own, inner, problem, "eval/accuracy"))
    inner.close()
    return state.params["encoder"]


def _joined_classes(config: Any, part: str) -> data.ArraySource:
    """The images of several data sets, whose classes follow one another."""
    opened = [_opened(config, own, part) for own in config.pretraining.of.values()]
    starts = np.cumsum([0, *(own.num_classes for own in opened)])
    found = [own.arrays() for own in opened]
    return data.ArraySource(
        np.concatenate([own["image"] for own in found]),
        np.concatenate([own["label"] + start for own, start in zip(found, starts, strict=False)]),
        class_names=[name for own in opened for name in own.class_names],
        name="joined", split=part,
    )  # fmt: skip


def _image_tasks(config: Any) -> dict[str, ImageTask]:
    return {
        name: ImageTask(*(_opened(config, own, part) for part in PARTS))
        for name, own in sorted(config.tasks.items())
    }


def _opened(config: Any, own: Any, part: str) -> data.ArraySource:
    """A part of a task in grey, of those of its classes that `labels` or `commonest` names.

    `commonest=(8, 40)` is classes by their number of images, from the ninth to the fortieth;
    `every=(1, 2)` takes every second of them, from the second on.
    """
    whole = _grey(own.name, "all", config.data.data_dir, tuple(config.data.image_shape))
    order = np.argsort(-np.bincount(whole.labels, minlength=whole.num_classes), kind="stable")
    chosen = np.array(own.get("labels") or order[slice(*own.get("commonest", (0, None)))])
    first, step = own.get("every", (0, 1))
    source = _grey(own.name, own[part], config.data.data_dir, tuple(config.data.image_shape))
    return data.select_classes(source, np.sort(chosen)[first::step])


@cache
def _grey(name: str, split: str, data_dir: Any, shape: tuple[int, ...]) -> data.ArraySource:
    """Grey images of bytes of one size, decoded once: several tasks share one data set."""
    source = data.load(name, split, data_dir=data_dir, image_size=shape[0])
    arrays = source.arrays()
    images = arrays["image"]
    if images.shape[-1] == 3:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        images = np.rint(images @ weights).astype(np.uint8)[..., None]
    return data.ArraySource(
        images, arrays["label"], class_names=source.class_names, name=name, split=split
    )
