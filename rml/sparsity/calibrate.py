"""Two passes over texts, from which thresholds of any sparsity and several rules can be taken."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rml.models import Llama
from rml.models.block_hooks import Activations, Probe, Thresholds
from rml.sparsity.statistics import token_mean
from rml.sparsity.thresholds import (
    Calibration,
    Moments,
    bin_counts,
    channel_scale,
    check_rule,
    importance,
    thresholds_of,
)


def observe(
    module: Llama,
    variables: Any,
    windows: Int[np.ndarray, "n t"],
    *,
    rules: Sequence[str] = ("abs",),
    attention: bool = True,
) -> Calibration:
    """Reads texts twice: for the sizes of u, then for the distribution of importances.

    Importances are counted in bins a layer; all of them together would not fit in memory. The two
    passes must be two, since a channel's scale is a mean over all texts.

    Args:
      module: The decoder.
      variables: Its variables.
      windows: Texts of equally many tokens, read one at a time.
      rules: Rules for which importances are counted, see `channel_scale`.
      attention: Whether inputs of attention's projections are counted too.

    Raises:
      ValueError: A rule is unknown, or there is no text.

    Source: arXiv:2409.01366. The authors' code of 2025 averages quantiles of documents, whatever
    their lengths; here the quantile is that of all tokens, as the definition has it.
    """
    for rule in rules:
        check_rule(rule)
    if not len(windows):
        raise ValueError("no windows to calibrate on, expected at least one")
    found = [_moments(module, variables, jnp.asarray(own)[None]) for own in windows]
    moments = Moments(
        *(np.mean([np.asarray(x) for x in own], 0) for own in zip(*found, strict=True))
    )
    norms = _down_norms(variables["params"], module.depth)
    wide = Moments(*map(jnp.asarray, moments))
    scales = {rule: channel_scale(rule, wide, norms) for rule in rules}
    up = jnp.sqrt(wide.up_square.mean(-1))
    units = {
        rule: jnp.sqrt(wide.gate_square)
        * jnp.sqrt(jnp.square(scale).mean(-1))
        * (up if rule.startswith("product") else 1.0)
        for rule, scale in scales.items()
    }
    if attention:
        units |= {
            "query": jnp.sqrt(wide.query_square),
            "output": jnp.sqrt(wide.output_square),
        }
    units = {name: jnp.maximum(unit, jnp.finfo(jnp.float32).tiny) for name, unit in units.items()}
    counts: dict[str, Any] = dict.fromkeys(units, 0)
    for own in windows:
        for name, more in _counts(module, variables, jnp.asarray(own)[None], scales, units).items():
            counts[name] = counts[name] + np.asarray(more, np.int64)
    return Calibration(
        {name: np.asarray(x) for name, x in scales.items()},
        {name: np.asarray(x) for name, x in units.items()},
        counts,
    )


def calibrate(
    module: Llama,
    variables: Any,
    windows: Int[np.ndarray, "n t"],
    *,
    sparsity: float,
    rule: str = "abs",
    attention: Collection[str] = (),
) -> Thresholds:
    """Finds one sparsity's thresholds on texts; `module.apply(..., thresholds=...)` takes them.

    Args:
      module: The decoder.
      variables: Its variables.
      windows: Texts of equally many tokens.
      sparsity: Share of importances below the threshold of their layer.
      rule: See `channel_scale`.
      attention: Projections of attention whose inputs are thinned out too.

    Raises:
      ValueError: As `observe` and `thresholds_of`.
    """
    found = observe(module, variables, windows, rules=(rule,), attention=bool(attention))
    return thresholds_of(found, sparsity=sparsity, rule=rule, attention=attention)


def _sizes(activations: Activations, own: Any) -> Moments:
    """Moments of one layer, as a probe's function."""
    del own

    def mean_square(x: jax.Array) -> jax.Array:
        return token_mean(jnp.square(x.astype(jnp.float32)), activations).mean()

    up = activations.up.astype(jnp.float32)
    return Moments(
        token_mean(jnp.abs(up), activations),
        token_mean(jnp.square(up), activations),
        mean_square(activations.gate),
        mean_square(activations.attention_input),
        mean_square(activations.heads),
    )


def _histograms(activations: Activations, own: Any) -> dict[str, jax.Array]:
    """Counts of importances of one layer by rule and place, as a probe's function."""
    scales, units = own
    found = {}
    for name, unit in units.items():
        if name in ("query", "output"):
            read = activations.attention_input if name == "query" else activations.heads
            sizes = jnp.abs(read)
        else:
            product = name.startswith("product")
            gate = activations.gate * activations.up if product else activations.gate
            sizes = importance(gate, scales[name])
        found[name] = bin_counts(sizes / unit)
    return found


@functools.partial(jax.jit, static_argnames="module")
def _moments(module: Llama, variables: Any, tokens: jax.Array) -> Moments:
    states: Any = module.apply(variables, tokens, probe=Probe(_sizes))
    return states.probed


@functools.partial(jax.jit, static_argnames="module")
def _counts(
    module: Llama, variables: Any, tokens: jax.Array, scales: Any, units: Any
) -> dict[str, jax.Array]:
    states: Any = module.apply(variables, tokens, probe=Probe(_histograms, (scales, units)))
    return states.probed


def _down_norms(params: Any, depth: int) -> jax.Array:
    """Norms of the rows of every layer's matrix back from the MLP, [layers, f]."""
    if "blocks" in params:
        return jnp.linalg.norm(params["blocks"]["mlp_out"]["kernel"], axis=-1)
    return jnp.stack(
        [jnp.linalg.norm(params[f"block{i}"]["mlp_out"]["kernel"], axis=-1) for i in range(depth)]
    )
