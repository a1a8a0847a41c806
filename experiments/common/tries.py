"""Options of each compared method, chosen on validation data: equally many tries of each.

`tries.<method>` of a config are changes to it, of which the one that validation data prefer is
taken. All tries of a method train as one program, in `methods/<method>_tries` of the run directory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, unstack
from experiments.common.pretraining import train_on_mesh
from experiments.common.selection import at_edge
from experiments.common.variants import with_changes
from rml.errors import UserError
from rml.training import Progress, RunDirectory, Task, TrainState

Score = Callable[[str, Any, TrainState], float]
"""`score(method, config, state)` of a try, on validation data; larger is better."""


def candidates(config: Any, methods: Iterable[str]) -> dict[str, list[ConfigDict]]:
    """Makes the configs that each method may get.

    Args:
      config: The run's config.
      methods: Names of the methods.

    Returns:
      The configs of each.

    Raises:
      UserError: Methods have different numbers of tries, a change is none of the config, or the
        config itself has another value of a key that every try of a method replaces.
    """
    tries = {method: tuple(config.tries[method]) for method in methods}
    counts = {method: len(changes) for method, changes in tries.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise UserError(f"tries are {counts}, expected equally many of each method")
    found = {
        method: [with_changes(config, one, named=f"tries.{method}") for one in changes]
        for method, changes in tries.items()
    }
    for method, changes in tries.items():
        keys = [{change.partition("=")[0] for change in one.split()} for one in changes]
        for key in sorted(set.intersection(*keys)):
            given = config_path.get_value(key, config)
            values = list(dict.fromkeys(config_path.get_value(key, one) for one in found[method]))
            # It would change nothing of this method.
            if given not in values:
                raise UserError(
                    f"{key} is {given}, which all of tries.{method} replace by one of "
                    f"{', '.join(map(str, values))}: change those"
                )
    return found


def choose(
    config: Any,
    run: RunDirectory,
    tried: Mapping[str, Sequence[Any]],
    *,
    task: Callable[[Any, str], Task],
    score: Score,
    name: str,
) -> tuple[dict[str, int], dict[str, float]]:
    """Tries the options of every method.

    Args:
      config: The run's config.
      run: Its directory.
      tried: Configs of each method's tries, see `candidates`, as they are trained and judged.
      task: `task(config, method)`, the training problem of a method.
      score: Score of a try.
      name: Name of the score, such as "knn".

    Returns:
      The number of each method's best try; and metrics that say how many were tried, which were
      chosen, and the best one's score. Of an option with more than two values
      `<option>_at_edge_<method>` says whether the smallest or the largest was chosen, beside which
      a better one may lie.
    """

    def measure(named: str, inner: RunDirectory) -> tuple[dict[str, float], int]:
        method = named.removesuffix("_tries")
        configs = tried[method]
        together = many(lambda own: task(own, method), configs)
        state = on_one_device(train_on_mesh(configs[0], inner, together))
        found = [score(method, own, unstack(state, i)) for i, own in enumerate(configs)]
        values = ", ".join(f"{value:.4f}" for value in found)
        Progress().note(f"{named}: {name} on validation data {values}")
        best = max(range(len(found)), key=found.__getitem__)
        return {f"{name}_{i}": value for i, value in enumerate(found)}, best

    several = [f"{method}_tries" for method, configs in tried.items() if len(configs) > 1]
    found = for_each(run, several, measure)
    chosen: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for method, configs in tried.items():
        measured, chosen[method] = found.get(f"{method}_tries", ({}, 0))
        metrics[f"tries_{method}"] = float(len(configs))
        if measured:
            metrics[f"validation_{method}"] = max(measured.values())
        changes = " ".join(config.tries[method]).split()
        for key in dict.fromkeys(change.partition("=")[0] for change in changes):
            values = [config_path.get_value(key, one) for one in configs]
            value, option = values[chosen[method]], key.rpartition(".")[2]
            metrics[f"chosen_{method}_{option}"] = float(value)
            if len(set(values)) > 2:
                metrics[f"{option}_at_edge_{method}"] = float(at_edge(value, set(values)))
    return chosen, metrics
