"""Texts continued by fused logits, and how much of the true continuation they have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.common import small_lm
from experiments.common.claims import with_bounds
from experiments.merging.bed import take
from experiments.merging.logits_models import Models
from experiments.merging.logits_readings import grid, modules
from rml.evaluation import rouge_n, same_first_line
from rml.merging import fuse_decode
from rml.models import Llama, Member, generate
from rml.ops import t_interval

WAYS = ("large", "expert", "proxy", "fixed", "dynamic", "same_mean", "lora", "tuned")
"""Weight 0, the expert alone, weight 1, what validation chose, chosen at every token, the mean of
what was chosen at all tokens alike, and the large model with an adapter or wholly tuned."""


class Writing(NamedTuple):
    """How texts went on, by way.

    Attributes:
      rouge: F1 of runs of two words [m].
      first_lines: Whether the first line is the true one [m].
      alpha: The weights that were chosen at every token [m, n].
    """

    rouge: Mapping[str, Float[np.ndarray, " m"]]
    first_lines: Mapping[str, Float[np.ndarray, " m"]]
    alpha: Float[np.ndarray, "m n"]


def write(
    config: Any, models: Models, text: small_lm.Text, name: str, fixed: float,
    windows: Int[np.ndarray, "m t"],
) -> Writing:  # fmt: skip
    """Continues test windows of one domain by every way, each time with the most probable token.

    Args:
      config: The run's config.
      models: All models.
      text: The domain's text.
      name: The domain.
      fixed: The weight that validation texts chose.
      windows: Tokens, of which the first `writing.prompt` are given and as many as
        `writing.steps` after them are the truth.
    """
    options, points = config.writing, grid(config)
    end = options.prompt + options.steps
    prompts, truth = windows[:, : options.prompt], windows[:, options.prompt : end]
    large, small = modules(config)
    at = list(config.data.domains).index(name)
    expert, one = take(models.experts, at), take(models.experts, np.array([at]))

    def fused(alpha: float | None) -> tuple[np.ndarray, np.ndarray]:
        choose = {} if alpha is not None else {"high": points[-1], "step": points[1]}
        found = fuse_decode(
            Member(large, {"params": models.large}), Member(small, {"params": one}, True),
            Member(small, {"params": models.small}), jnp.asarray(prompts), steps=options.steps,
            alpha=alpha, **choose,
        )  # fmt: skip
        return np.asarray(found.tokens), np.asarray(found.alpha[0])

    def alone(module: Llama, params: Any) -> np.ndarray:
        own = generate(module, {"params": params}, jnp.asarray(prompts), steps=options.steps)
        return np.asarray(own)

    dynamic, alpha = fused(None)
    same = float(points[np.argmin(abs(points - alpha.mean()))])
    tokens = {
        "large": alone(large, models.large), "expert": alone(small, expert),
        "dynamic": dynamic, "lora": alone(large, models.lora[name]),
        "tuned": alone(large, models.tuned[name]),
    }  # fmt: skip
    # Weights may be equal: each is decoded with once.
    constant = {"proxy": 1.0, "fixed": fixed, "same_mean": same}
    by_weight = {alpha: fused(alpha)[0] for alpha in {*constant.values()}}
    tokens |= {way: by_weight[alpha] for way, alpha in constant.items()}
    wanted = _texts(text, truth)
    written = {way: _texts(text, tokens[way]) for way in WAYS}
    return Writing(
        {way: rouge_n(own, wanted).f1 for way, own in written.items()},
        {way: same_first_line(own, wanted).astype(float) for way, own in written.items()},
        alpha,
    )


def compared(writings: Mapping[str, Writing]) -> dict[str, float]:
    """Metrics over the texts of all domains."""
    rouge, lines = (
        {way: np.concatenate([getattr(own, kind)[way] for own in writings.values()])
         for way in WAYS}
        for kind in ("rouge", "first_lines")
    )  # fmt: skip
    metrics = {f"rouge_{way}": float(own.mean()) for way, own in rouge.items()}
    metrics |= {f"first_line_{way}": float(own.mean()) for way, own in lines.items()}
    for other in ("proxy", "fixed"):
        for way, ending in (("dynamic", ""), ("same_mean", "_same_mean")):
            difference = t_interval(rouge[way] - rouge[other])
            metrics |= with_bounds(f"rouge_gain_over_{other}{ending}", difference)
    return metrics


def _texts(text: small_lm.Text, tokens: Int[np.ndarray, "m n"]) -> list[str]:
    return text.tokenizer.decode_batch(tokens.tolist())
