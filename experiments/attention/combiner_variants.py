"""Combiner's factorisations beside sparse attention of as many keys a query."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.equal_keys import window_keys, window_width
from experiments.common.timing import least_seconds
from rml.attention import (
    METHODS,
    attention_of,
    combiner_attention,
    count_keys,
    partition,
    pattern_bias,
)
from rml.attention.combiner import CombinerSettings
from rml.attention.partitions import DIRECT
from rml.evaluation.costs import program_flops
from rml.models.attention import Attend, attend
from rml.ops.attention_parts import Visible, attend_part

NAMES = {
    "exact": "exact", "fixed": "fixed", "logsparse": "logsparse", "vertical": "axial",
    "horizontal": "axial, rows", "mixture": "mixture", "joint": "joint",
    "fixed_direct": "direct, larger segments", "logsparse_direct": "sparse form of logsparse",
    "vertical_direct": "direct, larger rows", "window": "window and sinks",
    "window_rows": "larger window and sinks", "performer": "Performer", "fixed_mean": "fixed, mean",
}  # fmt: skip
"""What is compared, as figures call it."""
AXIAL = ("vertical", "horizontal", "mixture", "joint")
"""Kinds that lay the text out in rows."""


@functools.partial(jax.jit, static_argnames="settings")
def weights(query: jax.Array, key: jax.Array, *, settings: CombinerSettings) -> jax.Array:
    """Weights [t, t] of one causal head [1, 1, t, k]: what an identity as its values becomes."""
    values = jnp.eye(key.shape[2], dtype=key.dtype)[None, None]
    return combiner_attention(query, key, values, Visible(causal=True), settings=settings)[0, 0]


class Variant(NamedTuple):
    """An attention of the small model.

    Attributes:
      attention: What attends in all layers.
      keys: Number of keys that a query sees on average, those within regions shared out; of
        Performer the number whose products cost as much.
      segment: Tokens of a segment or a row; 0 where there are none.
    """

    attention: Attend
    keys: float
    segment: int = 0


def mean_keys(kind: str, length: int, segment: int) -> float:
    """Products of a query and a key of a causal factorisation over the number of tokens."""
    kinds = ("vertical", "horizontal") if kind in ("mixture", "joint") else (kind,)
    keys = [count_keys(partition(own, length, segment=segment, causal=True)) for own in kinds]
    return (keys[0].direct + sum(own.regions + own.within for own in keys)) / length


def direct_keys(kind: str, length: int, segment: int) -> float:
    """Number of keys that a causal query attends to directly, on average."""
    places = np.arange(length)
    above = places // segment if kind == "vertical" else 0
    return float(np.mean(places % segment + 1 + above))


def logsparse_seen(length: int, segment: int) -> np.ndarray:
    """What logsparse is the factorisation of: one's segment, and of each region its last token.

    Returns:
      [t, t], which keys each causal query sees.

    Source: our reading of the sparse pattern of section 4 (Li et al., 2019, arXiv:1907.00235).
    """
    labels = partition("logsparse", length, segment=segment, causal=True)
    last = labels != np.roll(labels, -1, axis=1)
    return (labels == DIRECT) | (last & (labels > DIRECT))


def segment_of(
    kind: str, length: int, keys: float, count: Callable[[str, int, int], float] = direct_keys
) -> int:
    """The segment with which a query sees nearest to so many keys, not below the cheapest one."""
    sizes = np.unique(np.geomspace(1, length, 100).round().astype(int)).tolist()
    found = np.array([count(kind, length, size) for size in sizes])
    cheapest = int(np.argmin(found))
    return int(sizes[cheapest + np.abs(found[cheapest:] - keys).argmin()])


def variants(config: Any) -> dict[str, Variant]:
    """The attentions of a config.

    Logsparse and its sparse form, direct attention in larger segments and the window see as many
    keys as fixed does with `combiner.segment`; direct attention in larger rows, and in their
    columns, as many as axial with that segment, which its mixtures have too. A second window has
    the keys of these larger rows.
    """
    options, n = config.combiner, config.text.length
    segment = options.segment
    keys, axial = (mean_keys(kind, n, segment) for kind in ("fixed", "vertical"))

    def made(kind: Any, segment: int, pool: Any = options.pool, regions: bool = True) -> Variant:
        settings = CombinerSettings(kind, segment, pool, regions)
        attention = attention_of("combiner", settings=settings)
        count = mean_keys if regions else direct_keys
        return Variant(attention, count(kind, n, segment), segment)

    def direct(kind: Any, keys: float) -> Variant:
        return made(kind, segment_of(kind, n, keys), regions=False)

    def log_keys(_: str, length: int, segment: int) -> float:
        return float(logsparse_seen(length, segment).sum() / length)

    def window(keys: float) -> Variant:
        width = window_width(keys, n, sinks=options.sinks)
        seen = window_keys(width, n, sinks=options.sinks)
        return Variant(attention_of("window", width=width, sinks=options.sinks), seen)

    nearest = segment_of("logsparse", n, keys, log_keys)
    seen = pattern_bias(logsparse_seen(n, nearest)[None], 1)
    rows = direct("vertical", axial)
    other = "mean" if options.pool == "max" else "max"
    return {
        "exact": Variant(attend, (n + 1) / 2),
        "fixed": made("fixed", segment),
        "logsparse": made("logsparse", segment_of("logsparse", n, keys, mean_keys)),
        **{kind: made(kind, segment) for kind in AXIAL},
        "fixed_direct": direct("fixed", keys),
        "logsparse_direct": Variant(
            functools.partial(attend, bias=seen), log_keys("", n, nearest), nearest
        ),
        "vertical_direct": rows,
        "window": window(keys),
        "window_rows": window(rows.keys),
        # A query's and a key's features, the sums and what is read of them: two keys a feature.
        "performer": Variant(
            attention_of("performer", rng=jax.random.key(0), features=options.features),
            2 * options.features,
        ),
        f"fixed_{other}": made("fixed", segment, other),
    }


def late_options(config: Any, name: str, choice: Any) -> dict[str, Any]:
    """Options of a row of `METHODS` in the trained model, at the keys of fixed.

    Args:
      config: The run's config.
      name: "fixed", "direct" or "window".
      choice: What is chosen on validation: the pool, the kind whose direct part it is, or the
        window's sinks.
    """
    options = config.late
    n, keys = options.length, mean_keys("fixed", options.length, options.segment)
    if name == "fixed":
        return {"settings": CombinerSettings("fixed", options.segment, choice)}
    if name == "direct":
        segment = segment_of(choice, n, keys)
        return {"settings": CombinerSettings(choice, segment, regions=False)}
    return {"width": window_width(keys, n, sinks=choice), "sinks": choice}


def operations(config: Any) -> dict[str, np.ndarray]:
    """Counted operations of one causal head at every length of `costs.lengths`.

    Fixed and axial have segments of the root of the length, logsparse those of `costs.segment`.
    """
    options = config.costs
    found: dict[str, list[float]] = {}
    for n in options.lengths:
        one = jax.ShapeDtypeStruct((1, 1, n, options.width), jnp.float32)
        found.setdefault("exact", []).append(program_flops(attend_part, one, one, one))
        for kind in ("fixed", "logsparse", "vertical", "mixture"):
            segment = options.segment if kind == "logsparse" else round(n**0.5)
            settings = CombinerSettings(kind, segment)
            own = functools.partial(
                combiner_attention, visible=Visible(causal=True), settings=settings
            )
            found.setdefault(kind, []).append(program_flops(own, one, one, one))
    return {name: np.array(own) for name, own in found.items()}


def speeds(config: Any) -> dict[str, float]:
    """Time of exact attention to `costs.timed` tokens over that of each factorisation.

    Exact attention is the faster of dense attention and `METHODS["exact"]`, each of which has its
    own metric too, 1 of the faster one. Segments are those of `operations`. With one segment
    everything is direct.
    """
    n, options = config.costs.timed, config.costs
    shape = (1, config.model.heads, n, options.width)
    arrays = tuple(jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3))

    def seconds(attention: Callable[..., jax.Array]) -> float:
        call = jax.jit(attention)
        return least_seconds(lambda: call(*arrays), repeats=3)

    seen = jnp.tril(jnp.ones((n, n), bool))
    exact = {
        "dense": seconds(lambda query, key, value: attend_part(query, key, value, seen).out),
        "in_blocks": seconds(functools.partial(METHODS["exact"], visible=Visible(causal=True))),
    }
    fastest = min(exact.values())
    root = round(n**0.5)
    rows = {
        "fixed": CombinerSettings("fixed", root),
        "logsparse": CombinerSettings("logsparse", options.segment),
        "vertical": CombinerSettings("vertical", root),
        "mixture": CombinerSettings("mixture", root),
        "one_segment": CombinerSettings("fixed", n),
    }
    causal = functools.partial(combiner_attention, visible=Visible(causal=True))
    found = {
        name: seconds(functools.partial(causal, settings=settings))
        for name, settings in rows.items()
    }
    return {f"speed_{name}": fastest / own for name, own in (exact | found).items()}
