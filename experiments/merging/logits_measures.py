"""What readings of texts say of ways to decode: of one expert, of contrast, of several experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common.claims import with_bounds
from experiments.merging.logits_models import Models, merged
from experiments.merging.logits_readings import (
    Reading,
    grid,
    read,
    read_contrastive,
    read_dynamic,
)
from rml.ops import t_interval


def of_one(
    config: Any, validation: Mapping[str, np.ndarray], test: Mapping[str, Reading],
    whole: Mapping[str, Any],
) -> dict[str, float]:  # fmt: skip
    """Metrics of each domain with its own expert, over the windows of all domains.

    Args:
      config: The run's config.
      validation: Nats of validation windows with each weight [m, g, n], by domain.
      test: Reading of test windows, by domain.
      whole: Nats of test windows [m, n], by way of tuning or decoding and domain.
    """
    points = grid(config)
    each = {name: int(np.argmin(own.mean((0, 2)))) for name, own in validation.items()}
    proxy = int(np.argmin(abs(points - 1)))
    nats = {
        "large": join(test, lambda own: own.large),
        "expert": join(test, lambda own: own.expert),
        "mean": join(test, lambda own: own.mean),
        "proxy": join(test, lambda own: own.fixed[:, proxy]),
        "dynamic": join(test, lambda own: own.dynamic),
        "refined": join(test, lambda own: own.refined),
        "shuffled": join(test, lambda own: own.shuffled),
        "fixed": np.concatenate([own.fixed[:, each[name]].mean(1) for name, own in test.items()]),
        "fixed_oracle": np.concatenate([own.fixed.mean(2)[:, at] for own in test.values()
                                        for at in [int(np.argmin(own.fixed.mean((0, 2))))]]),
        **{kind: np.concatenate([own.mean(1) for own in rows.values()])
           for kind, rows in whole.items()},
    }  # fmt: skip
    metrics = {f"nats_{name}": float(own.mean()) for name, own in nats.items()}
    metrics |= {f"fixed_alpha_{name}": float(points[at]) for name, at in each.items()}
    for other in ("proxy", "fixed", "mean"):
        for name, ending in (("dynamic", ""), ("shuffled", "_shuffled"), ("refined", "_refined")):
            difference = t_interval(nats[other] - nats[name])
            metrics |= with_bounds(f"gain_over_{other}{ending}", difference)
    tuned, large = metrics["nats_tuned"], metrics["nats_large"]
    metrics["ratio_to_tuned"] = tuned / metrics["nats_dynamic"]
    metrics["ratio_to_tuned_large"] = tuned / large
    metrics["gap_closed"] = (large - metrics["nats_dynamic"]) / (large - tuned)
    rng = np.random.default_rng(config.seed)
    pairs = [(own.alpha.ravel(), own.moved.ravel()) for own in test.values()]
    metrics["alpha_correlation"] = mean_correlation(pairs)
    metrics["alpha_correlation_shuffled"] = mean_correlation(
        [(alpha, rng.permutation(moved)) for alpha, moved in pairs]
    )
    metrics["alpha_mean"] = float(np.mean([alpha.mean() for alpha, _ in pairs]))
    metrics["alpha_sd"] = float(np.mean([alpha.std() for alpha, _ in pairs]))
    # Where the large model is the small one, weight 1 is exact at every token.
    metrics["alpha_sd_same"] = float(np.mean([own.same.std() for own in test.values()]))
    return metrics


def contrasted(
    config: Any, models: Models, windows: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Nats of test windows by contrastive decoding, by domain, and the β that validation chose."""
    nats, chosen = {}, {}
    for name in config.data.domains:
        tried = read_contrastive(config, models, windows["validation"][name]).mean((0, 2))
        at = int(np.argmin(tried))
        nats[name] = read_contrastive(config, models, windows["test"][name])[:, at]
        chosen[f"contrastive_beta_{name}"] = float(grid(config)[at])
    return nats, chosen


def of_several(
    config: Any, models: Models, windows: Mapping[str, Any], test: Mapping[str, Reading]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of all experts at once; shares of tokens at which each is the active one."""
    domains, unseen = list(config.data.domains), config.data.unseen
    new = read(config, models, models.experts, 0, windows["test"][unseen])
    tried = {
        scale: np.mean([
            read_dynamic(config, models, merged(models, scale), windows["validation"][name])[1]
            for name in domains
        ])
        for scale in config.alpha.scales
    }  # fmt: skip
    chosen = min(tried, key=lambda scale: tried[scale])
    experts = {"multitask": models.multitask, "arithmetic": merged(models, chosen)}
    metrics: dict[str, float] = {"scale_arithmetic": chosen}
    by: dict[str, dict[str, Any]] = {
        name: {"large": own.large, "several": own.several, "uniform": own.uniform}
        for name, own in (*test.items(), (unseen, new))
    }
    for kind, params in experts.items():
        for name, rows in by.items():
            rows[kind], rows[f"{kind}_dynamic"] = read_dynamic(
                config, models, params, windows["test"][name]
            )
    for way in by[unseen]:
        metrics[f"nats_{way}_seen"] = float(np.mean([by[name][way].mean() for name in domains]))
        metrics[f"nats_{way}_unseen"] = float(by[unseen][way].mean())
    base = metrics["nats_large_unseen"]
    for way, ending in (("several", ""), ("multitask", "_multitask"), ("uniform", "_uniform")):
        metrics[f"rise_unseen{ending}"] = metrics[f"nats_{way}_unseen"] / base - 1
    active = {
        name: (own.active.argmax(1)[..., None] == np.arange(len(domains)))[own.active.max(1) > 0]
        .mean(0)
        for name, own in (*test.items(), (unseen, new))
    }  # fmt: skip
    return metrics, active


def join(test: Mapping[str, Reading], of: Any) -> np.ndarray:
    """Means of the windows of all domains, [m]."""
    return np.concatenate([of(own).mean(1) for own in test.values()])


def mean_correlation(pairs: Any) -> float:
    """The mean of the rank correlations of pairs of arrays; 0 where one is constant."""
    from scipy.stats import spearmanr  # slow to import

    found = [spearmanr(*pair).statistic if all(map(np.ptp, pair)) else 0.0 for pair in pairs]
    return float(np.mean(found))
