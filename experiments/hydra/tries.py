"""Options of each compared method, chosen on validation data: equally many tries of each.

`tries.<method>` are changes to the config, of which the one is taken whose features have the best
neighbours among the validation images. All tries of a method train as one program for
`tries.steps` steps each, in `methods/<method>_tries` of the run directory.
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from experiments.common.comparison import for_each
from experiments.common.evaluators import ImageEvaluator
from experiments.common.many import many, on_one_device, unstack
from experiments.common.pretraining import train_on_mesh
from experiments.common.selection import at_edge
from experiments.common.variants import with_changes
from experiments.hydra import methods
from rml.errors import UserError
from rml.training import Progress, RunDirectory


def candidates(config: Any) -> dict[str, list[ConfigDict]]:
    """The configs that each method may get.

    Raises:
      UserError: Methods have different numbers of tries, a change is none of the config, or the
        config itself has another value of a key that every try of a method replaces.
    """
    tries = {method: tuple(config.tries[method]) for method in methods.METHODS}
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


def on_validation(config: Any) -> ConfigDict:
    """The config of a try, judged on validation images."""
    own = ConfigDict(config.to_dict())
    own.data.test = own.data.validation
    if "domains" in own.data:
        own.data.domains.test = own.data.domains.validation
    steps = own.tries.steps
    own.train.update(dict(steps=steps, eval_every=0, checkpoint_every=steps, log_every=steps))
    return own


def choose(config: Any, run: RunDirectory) -> tuple[dict[str, ConfigDict], dict[str, float]]:
    """Tries the options of every method.

    Args:
      config: The run's config.
      run: Its directory.

    Returns:
      The config of each method with the best options; and metrics that say how many were tried,
      which were chosen, and the best one's accuracy of neighbours on the validation images. Of an
      option with more than two values `<option>_at_edge_<method>` says whether the smallest or the
      largest was chosen, beside which a better one may lie.
    """
    tried = candidates(config)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], int]:
        method = name.removesuffix("_tries")
        configs = [on_validation(one) for one in tried[method]]
        together = many(partial(methods.task, method=method), configs)
        evaluator = ImageEvaluator(methods.build_model(configs[0], method), configs[0])
        state = on_one_device(train_on_mesh(configs[0], inner, together))
        found = [
            evaluator.knn(evaluator.features(unstack(state, i).variables))
            for i in range(len(configs))
        ]
        Progress().note(f"{name}: kNN on validation images " + ", ".join(f"{v:.4f}" for v in found))
        best = max(range(len(found)), key=found.__getitem__)
        return {f"knn_{i}": value for i, value in enumerate(found)}, best

    several = [f"{method}_tries" for method, configs in tried.items() if len(configs) > 1]
    found = for_each(run, several, measure)
    chosen: dict[str, ConfigDict] = {}
    metrics: dict[str, float] = {}
    for method, configs in tried.items():
        measured, best = found.get(f"{method}_tries", ({}, 0))
        chosen[method] = configs[best]
        metrics[f"tries_{method}"] = len(configs)
        if measured:
            metrics[f"validation_{method}"] = max(measured.values())
        changes = " ".join(config.tries[method]).split()
        for key in dict.fromkeys(change.partition("=")[0] for change in changes):
            value, name = config_path.get_value(key, chosen[method]), key.rpartition(".")[2]
            metrics[f"chosen_{method}_{name}"] = float(value)
            values = {config_path.get_value(key, one) for one in configs}
            if len(values) > 2:
                metrics[f"{name}_at_edge_{method}"] = float(at_edge(value, values))
    return chosen, metrics
