"""Patterns of S2-attention beside others at equal keys, in a small model and in a trained one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.equal_keys import window_keys, window_width
from experiments.common.small_lm import language_model
from experiments.common.timing import least_seconds
from rml.attention import METHODS, pattern_bias, shard_pattern, work
from rml.models import Llama, sharded_cache
from rml.models.attention import Attend, attend
from rml.ops.attention_parts import Visible

NAMES = {
    "dense": "dense", "s2": "S2", "homogeneous": "one shard in all heads",
    "window": "window and sinks", "sinkless": "window, no sinks",
    "hybrid": "S2, some layers dense", "headed": "S2, one shard dense",
}  # fmt: skip
"""What is compared, as figures call it."""


class Variant(NamedTuple):
    """An attention of the small model.

    Attributes:
      attention: What attends in all layers, or in each.
      keys: Number of keys that a query sees on average.
      cache: Bytes of the cache of a whole window over those of a full cache.
    """

    attention: Any
    keys: float
    cache: float


def bytes_of(cache: Callable[[], Any]) -> int:
    """Counts the bytes of what a function makes, without making it."""
    return jax.eval_shape(cache).bytes


def mean_keys(pattern: np.ndarray, block: int) -> float:
    """Number of keys that a query of a causal pattern sees, on average over queries and heads."""
    blocks = pattern.shape[1]
    return float(pattern.sum() / len(pattern) / blocks * block - (block - 1) / 2)


def variants(config: Any) -> dict[str, Variant]:
    """The attentions of a config, `<name>_<stride>` but for the dense one.

    S2 and the window are there with each of `pattern.strides`, the others with the last.
    """
    options, n = config.pattern, config.text.length
    module = language_model(config, attend)
    full = bytes_of(lambda: module.init_cache(1, n))
    found = {"dense": Variant(attend, (n + 1) / 2, 1.0)}

    def windowed(keys: float, sinks: int) -> Variant:
        width = window_width(keys, n, sinks=sinks)
        kept = bytes_of(lambda: module.init_cache(1, window=width, sinks=sinks)) / full
        seen = window_keys(width, n, sinks=sinks)
        return Variant(functools.partial(_windowed, width=width, sinks=sinks), seen, kept)

    for stride in options.strides:
        own = _sharded(config, stride, shards=module.head_shape()[0], full=full)
        found[f"s2_{stride}"] = own
        found[f"window_{stride}"] = windowed(own.keys, options.sinks)
    last = options.strides[-1]
    sparse = found[f"s2_{last}"]
    found[f"homogeneous_{last}"] = _sharded(config, last, shards=1, full=full)
    found[f"sinkless_{last}"] = windowed(sparse.keys, sinks=0)
    found[f"headed_{last}"] = _sharded(
        config, last, shards=module.head_shape()[0], full=full, dense_heads=1
    )
    dense = [(layer + 1) % options.dense_every == 0 for layer in range(module.depth)]
    share = float(np.mean(dense))
    found[f"hybrid_{last}"] = Variant(
        tuple(attend if own else sparse.attention for own in dense),
        share * (n + 1) / 2 + (1 - share) * sparse.keys,
        share + (1 - share) * sparse.cache,
    )
    return found


def pattern_of(
    config: Any, stride: int, *, shards: int, offset: int = 0, dense_heads: int = 0
) -> np.ndarray:
    """The pattern of a window of the small model.

    One shard in all heads has the middle residue, of nearly as many keys as all on average.
    """
    options = config.pattern
    return shard_pattern(
        config.text.length // options.block, heads=config.model.heads, shards=shards,
        local=options.local, stride=stride, offset=offset if shards > 1 else stride // 2,
        dense_heads=dense_heads,
    )  # fmt: skip


def _sharded(config: Any, stride: int, *, shards: int, full: int, dense_heads: int = 0) -> Variant:
    block = config.pattern.block
    pattern = pattern_of(config, stride, shards=shards, dense_heads=dense_heads)
    module = language_model(config, attend)
    kept = bytes_of(functools.partial(sharded_cache, module, 1, pattern, block=block))
    masked = functools.partial(attend, bias=pattern_bias(pattern, block))
    return Variant(masked, mean_keys(pattern, block), kept / full)


def _windowed(query: Any, key: Any, value: Any, visible: Visible, *, width: int, sinks: int) -> Any:
    return attend(query, key, value, visible._replace(window=width, sinks=sinks))


def late_options(config: Any, name: str, choice: int) -> dict[str, Any]:
    """Options of a row of `METHODS` at `late.seen` keys in the trained model.

    Args:
      config: The run's config.
      name: "s2", of which every head has its own shard, "homogeneous", of which all have the middle
        residue, or "window".
      choice: What is chosen on validation: a stride, or the window's sinks.
    """
    options = config.late
    n, block = options.length, options.block
    if name == "window":
        return {"width": window_width(options.seen, n, sinks=choice), "sinks": choice}
    shards = options.heads if name == "s2" else 1
    offset = 0 if name == "s2" else choice // 2
    how = {"heads": options.heads, "shards": shards, "stride": choice, "offset": offset}
    keys = [
        mean_keys(shard_pattern(-(-n // block), local=local, **how), block)
        for local in range(1, n // block + 1)
    ]
    local = 1 + int(np.argmin(np.abs(np.array(keys) - options.seen)))
    return {"block": block, "local": local, "stride": choice, "shards": shards, "offset": offset,
            "covering": name == "s2"}  # fmt: skip


def costly_pattern(config: Any) -> np.ndarray:
    """Makes the pattern whose costs are measured, of the sizes of `costs`."""
    options = config.costs
    return shard_pattern(
        options.length // options.block, heads=options.heads, shards=options.kv_heads,
        local=options.local, stride=options.stride,
    )  # fmt: skip


def costs(config: Any) -> dict[str, float]:
    """Counted and timed operations and bytes of caches at the sizes of `costs`.

    Args:
      config: The run's config; `costs` has the block, window, stride, heads and width of a model
        and a number of tokens.

    Returns:
      Metrics: shares of dense attention's, those of the same code that leaves no block out, and of
      a cache that keeps what any head reads. Times stand over the share of operations as well.
    """
    options = config.costs
    n, block = options.length, options.block
    pattern = costly_pattern(config)
    share = work(pattern)
    module = Llama(
        vocabulary=2, width=options.heads * options.width, depth=1, heads=options.heads,
        kv_heads=options.kv_heads, mlp=1, dtype=jnp.bfloat16,
    )  # fmt: skip
    full = bytes_of(lambda: module.init_cache(1, n))
    caches = {
        "cache_share": pattern,
        "cache_share_union": np.broadcast_to(pattern.any(axis=0), pattern.shape),
    }
    metrics = {"operations_share": share} | {
        name: bytes_of(functools.partial(sharded_cache, module, 1, own, block=block)) / full
        for name, own in caches.items()
    }
    draws = jax.random.split(jax.random.key(config.seed), 3)
    arrays = tuple(
        jax.random.normal(key, (1, heads, n, options.width))
        for key, heads in zip(draws, (options.heads, *(options.kv_heads,) * 2), strict=True)
    )
    own = {"block": block, "local": options.local, "stride": options.stride}
    whole = {"block": block, "local": n // block, "stride": 1}

    def seconds(name: str, **how: Any) -> float:
        call = jax.jit(lambda *arrays: METHODS[name](*arrays, Visible(causal=True), **how))
        return least_seconds(lambda: call(*arrays), repeats=3)

    dense = seconds("exact")
    # The null is the same code where it leaves no block out.
    for ending, how in (("", own), ("_all_blocks", whole)):
        metrics[f"time_share{ending}"] = seconds("s2_attention", **how) / dense
        metrics[f"time_over_operations{ending}"] = metrics[f"time_share{ending}"] / share
    return metrics


def decoding_errors(
    config: Any, params: Any, windows: np.ndarray, *, offsets: Sequence[int]
) -> list[float]:  # fmt: skip
    """Greatest difference, over the greatest hidden state, of decoding with sharded caches.

    Args:
      config: The run's config.
      params: Parameters of a model trained with S2's last stride.
      windows: Tokens, [b, n].
      offsets: Blocks by which each cache's pattern differs from the model's.
    """
    stride, block = config.pattern.strides[-1], config.pattern.block
    shards = language_model(config, attend).head_shape()[0]
    pattern = pattern_of(config, stride, shards=shards)
    masked: Attend = functools.partial(attend, bias=pattern_bias(pattern, block))
    module = language_model(config, masked)
    variables, tokens = {"params": params}, jnp.asarray(windows)

    @jax.jit
    def difference(tokens: jax.Array, empty: Any) -> jax.Array:
        whole: Any = module.apply(variables, tokens)
        first = tokens.shape[1] // 2
        states: Any = module.apply(variables, tokens[:, :first], cache=empty)

        def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
            after: Any = module.apply(variables, token[:, None], cache=cache)
            return after.cache, after.last[:, 0]

        _, rest = jax.lax.scan(step, states.cache, tokens[:, first:].T)
        found = jnp.concatenate([states.last, rest.swapaxes(0, 1)], axis=1)
        return jnp.abs(found - whole).max() / jnp.abs(whole).max()

    kept = (pattern_of(config, stride, shards=shards, offset=offset) for offset in offsets)
    return [
        float(difference(tokens, sharded_cache(module, len(tokens), own, block=block)))
        for own in kept
    ]
