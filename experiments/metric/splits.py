"""What is repeated on several splits of the classes, each with encoders of its own."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.common.class_parts import over_splits
from experiments.common.comparison import for_each
from rml.training import RunDirectory


def measure_all(
    config: Any, run: RunDirectory, measure: Callable[[Any, RunDirectory], Mapping[str, float]]
) -> dict[str, float]:
    """Measures every split in `methods/split_<seed>` of the run directory.

    Args:
      config: The run's config.
      run: The run's directory.
      measure: `measure(config, directory) -> metrics` of one split, whose seed the config has.

    Returns:
      The mean of each metric over splits, with its interval `<name>_low` and `<name>_high`; of
      choices, whose mean need not be one, none.
    """
    # Seeds of different runs have no split in common.
    seeds = range(config.seed * config.splits, (config.seed + 1) * config.splits)

    def measured(name: str, inner: RunDirectory) -> tuple[Mapping[str, float], None]:
        if (done := inner.summary()) is not None:
            return done["metrics"], None
        own, seed = config.copy_and_resolve_references(), int(name.removeprefix("split_"))
        own.seed, own.classes.seed = seed, config.classes.seed + seed
        return measure(own, inner), None

    found = for_each(run, [f"split_{seed}" for seed in seeds], measured)
    splits = [metrics for metrics, _ in found.values()]
    metrics: dict[str, float] = {}
    for name in splits[0]:
        if name.startswith("chosen_"):
            continue
        mean, low, high = over_splits(config, [own[name] for own in splits])
        metrics[name] = float(mean)
        if "_at_edge_" not in name and not name.startswith("tries_") and len(splits) > 1:
            metrics |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return metrics


def shortened(config: Any) -> Any:
    """The config of a try, which trains for `tries.steps` steps."""
    one, steps = config.copy_and_resolve_references(), config.tries.steps
    one.train.update(dict(steps=steps, eval_every=0, checkpoint_every=steps, log_every=steps))
    return one
