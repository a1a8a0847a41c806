"""Students of several families and settings, and which setting of a side validation images choose.

A student is called (side, setting, teacher): the method, the values of the options that were tried,
and the family of its teacher, None where it has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from experiments.common.many import TaskOf, replaced
from experiments.common.selection import at_edge
from experiments.distillation import together
from experiments.distillation.families import Bed
from experiments.distillation.together import named_rightly
from rml import data, models
from rml.distillation import Network, network_variables
from rml.training import RunDirectory, TrainState

Setting = Any
Name = tuple[str, Setting, str | None]
Changes = dict[Name, dict[str, Any]]
"""By name of a student what of the config it changes."""
RATE = "learning_rate"
"""Key of tries that any side may have beside its own; it belongs to the optimiser."""


class Students(NamedTuple):
    """Trained students of a program, as they are used: without what was trained beside them.

    Attributes:
      names: What each is called.
      variables: Variables of `network` with a leading axis of students.
      accuracy: Share of validation images that each names rightly, [students].
    """

    names: tuple[Name, ...]
    variables: Any
    accuracy: np.ndarray

    def some(self, names: Any) -> Any:
        """The variables of some of them."""
        rows = np.array([self.names.index(name) for name in names], int)
        return jax.tree.map(lambda leaf: leaf[rows], self.variables)


Programs = list[Students]


def network(config: Any, family: str) -> Network:
    """A student as it is used."""
    return Network(models.build(**config.students[family]), config.classes)


def batches(config: Any, bed: Bed) -> grain.IterDataset:
    """Training images, for ever."""
    rows = data.Arrays(bed.train)
    return data.batches(rows, batch_size=config.train.batch_size, seed=config.seed)


def train_students(
    config: Any, run: RunDirectory, name: str, family: str, changes: Changes, bed: Bed,
    task_of: TaskOf,
) -> Students:  # fmt: skip
    """Trains a student of a family for each setting, all on the same batches, as one program.

    Args:
      config: The run's config.
      run: Its directory; the program is `methods/<name>`.
      name: Name of the program.
      family: Family of the students.
      changes: Their names, and what of the config each changes.
      bed: What they learn from.
      task_of: Makes the problem of one of them; "network" are the student's parameters in it.
    """
    plain = network(config, family)

    def used(state: TrainState) -> Any:
        return network_variables({"params": state.params["network"], **state.model_state})

    state, accuracy = together.train_together(
        config, run, name, task_of, [replaced(config, change) for change in changes.values()],
        batches=lambda: task_of(config).batches(),
        judge=lambda state: named_rightly(plain, used(state), bed.validation).mean(1),
    )  # fmt: skip
    # In NumPy some of them are chosen without a program for each shape.
    return Students(tuple(changes), jax.device_get(used(state)), accuracy)


def keys(config: Any, side: str) -> tuple[str, ...]:
    """Names of the values of a side's settings."""
    own = tuple(config.tries[side])
    return (*own, RATE) if config.get("rates") else own


def settings(config: Any, side: str) -> list[Setting]:
    """The settings of a side: products of the tries of its keys.

    With `config.rates` all of them have its first learning rate, and the first the others too.
    """
    found, rates = list(product(*config.tries[side].values())), config.get("rates", ())
    if not rates:
        return found
    return [(*own, rates[0]) for own in found] + [(*found[0], rate) for rate in rates[1:]]


def rate_at_edge(config: Any, side: str, setting: Setting) -> bool:
    """Tells whether a setting has the lowest or the highest learning rate that its side tried."""
    at = keys(config, side).index(RATE)
    return at_edge(setting[at], [own[at] for own in settings(config, side)])


def given(config: Any, values: Mapping[str, float]) -> dict[str, Any]:
    """What a student with other values of `config.given` changes."""
    return {"seed": config.seed, **{f"given.{key}": value for key, value in values.items()}}


def of_setting(side: str, setting: Setting, programs: Iterable[Students]) -> list[float]:
    """Accuracy on validation images of each student of a setting."""
    return [
        float(accuracy) for own in programs
        for name, accuracy in zip(own.names, own.accuracy, strict=True)
        if name[:2] == (side, setting)
    ]  # fmt: skip


def best(
    config: Any, side: str, programs: Programs, tried: Sequence[Setting] | None = None
) -> Setting:
    """The setting of a side with the best accuracy on validation images over all its students.

    Args:
      config: The run's config.
      side: The side.
      programs: The students.
      tried: The settings among which it is; by default all.
    """
    return max(
        settings(config, side) if tried is None else tried,
        key=lambda own: float(np.mean(of_setting(side, own, programs))),
    )


def named(
    config: Any, bed: Bed, family: str, programs: Programs, wanted: Iterable[tuple[str, Setting]]
) -> dict[Name, np.ndarray]:
    """Whether test images are named rightly by the students of a family of some settings."""
    wanted = set(wanted)
    names = [[name for name in own.names if name[:2] in wanted] for own in programs]
    parts = [own.some(keys) for own, keys in zip(programs, names, strict=True)]
    variables = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    right = named_rightly(network(config, family), variables, bed.test)
    return dict(zip([name for keys in names for name in keys], right, strict=True))
