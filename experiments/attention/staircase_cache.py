"""A cache that loses bits with age, in a trained language model, beside uniform ones.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, the table of staircase adaptive quantisation. SmolLM2 reads long speeches some
tokens at a time through caches of one quantiser: the staircase; KIVI's uniform one, whose residual
is as long as equal bytes allow; the same with the staircase's short residual; and four bits for
everything old. The paper reports no experiment that we know of: sizes and margins are ours.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention import staircase_figures
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.common.claims import with_bounds
from rml.attention import Staircase, bytes_held, staircase_cache
from rml.errors import UserError
from rml.evaluation.long_text import token_nats
from rml.models import pretrained, read_in_chunks
from rml.ops import group_dequantize, group_quantize, t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2410.18441, staircase adaptive quantisation; data, sizes and margin are ours"
CLAIMS = (
    Claim("A text loses less by the staircase than by a uniform cache of equal bytes",
          "gain_over_uniform", ">=", 0.0, SOURCE, stated="2026-11-26", null="gain_of_short"),
    Claim("Both caches take equal bytes, to 1%",
          "bytes_apart", "<=", 0.01, SOURCE, stated="2026-11-26", null="bytes_apart_four"),
    Claim("The staircase takes at most 35% of the bytes of 16 bits",
          "bytes_share", "<=", 0.35, SOURCE, stated="2026-11-26", null="bytes_share_four"),
    Claim("Going down the steps adds at most 2% to the squared error of quantising once",
          "error_of_steps", "<=", 1.02, f"{SOURCE}; levels of 8, 4 and 2 bits are nested",
          stated="2026-11-26", null="error_of_steps_apart"),
    Claim("A text loses at least 0.02 nats less than with the same residual and no steps",
          "gain_of_steps", ">=", 0.02, SOURCE, stated="2026-11-26", null="gain_of_steps_early"),
)  # fmt: skip
CAPTIONS = staircase_figures.CAPTIONS
PICTURE = "nats.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Reads speeches through each cache, counts bytes, compares, draws."""
    check(config)
    loaded = pretrained.load(config.model.name, **config.model.get("options", {}))
    caches = variants(config, loaded.module)
    texts = speeches(config, "test", loaded.tokenizer, config.length)
    order = np.random.default_rng(config.seed).permutation(len(texts))
    texts = texts[order[: config.documents]]
    nats = {"exact": read(config, loaded, texts, None)}
    for name, staircase in caches.items():
        nats[name] = read(config, loaded, texts, staircase)
        lost = (nats[name] - nats["exact"])[:, config.length // 2 :].mean()
        Progress().note(f"{name}, residual {staircase.chunk}: {lost:.4f} nats lost")
    sizes = {name: mean_bytes(config, loaded.module, own) for name, own in caches.items()}
    metrics = summarised(config, nats, sizes, whole_bytes(config, loaded.module))
    metrics |= {f"residual_{name}": own.chunk for name, own in caches.items()}
    metrics |= requantised(config, Decoder(loaded.module, loaded.variables), texts[0])
    staircase_figures.of_bits(run, caches, config.length)
    staircase_figures.of_nats(run, nats)
    staircase_figures.of_bytes(run, sizes, whole_bytes(config, loaded.module))
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless there are steps, of quantised bits."""
    bits = config.staircase.bits
    if len(bits) < 3 or max(bits[1:]) > 8 or bits[-1] >= 4:
        raise UserError(
            f"staircase.bits is {tuple(bits)}, expected three or more that end below 4, the first "
            "alone above 8"
        )


def variants(config: Any, module: Any) -> dict[str, Staircase]:
    """The caches: "uniform" has the bytes of "staircase", "short" its residual, "four" 4 bits."""
    bits, chunk, group = (config.staircase[key] for key in ("bits", "chunk", "group"))
    staircase = Staircase(tuple(bits), chunk, group)
    wanted = mean_bytes(config, module, staircase)
    uniform = [
        Staircase((bits[0], bits[-1]), size, group)
        for size in range(group, config.length // 2, group)
    ]
    distances = [abs(mean_bytes(config, module, own) - wanted) for own in uniform]
    return {
        "staircase": staircase,
        "uniform": uniform[int(np.argmin(distances))],
        "short": Staircase((bits[0], bits[-1]), chunk, group),
        "four": Staircase((bits[0], 4), chunk, group),
    }


def mean_bytes(config: Any, module: Any, staircase: Staircase) -> float:
    """Bytes of one text's keys and values in all layers, on average over the calls of reading it.

    Counted is what a call finds; the calls before anything is quantised are among them.
    """
    heads, width = module.head_shape()
    lengths = range(0, config.length, config.call)
    held = np.mean([bytes_held(staircase, length, width=width) for length in lengths])
    return float(module.depth * heads * held)


def whole_bytes(config: Any, module: Any) -> float:
    """The same of a cache of 16 bits."""
    return mean_bytes(config, module, Staircase((16, 16), config.call, config.staircase.group))


def read(config: Any, loaded: Any, texts: np.ndarray, staircase: Staircase | None) -> np.ndarray:
    """Nats [documents, t - 1] of texts that are read through a cache; all bits without one."""
    module, batch = loaded.module, len(texts)
    cache = (
        module.init_cache(batch, config.length)
        if staircase is None
        else staircase_cache(module, batch, config.length, staircase)
    )
    tokens = jnp.asarray(texts)
    hidden, _ = read_in_chunks(module, loaded.variables, tokens, cache=cache, chunk=config.call)
    return np.asarray(_nats(loaded.variables, hidden, tokens, module=module))


@functools.partial(jax.jit, static_argnames="module")
def _nats(variables: Any, hidden: jax.Array, tokens: jax.Array, *, module: Any) -> jax.Array:
    def head(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, method="logits")

    return jax.lax.map(lambda pair: token_nats(pair[0], head, pair[1]), (hidden, tokens))


def summarised(
    config: Any, nats: Mapping[str, np.ndarray], sizes: Mapping[str, float], whole: float
) -> dict[str, float]:
    """Metrics of the last half of texts, with intervals over texts; and of bytes."""
    early = config.staircase.chunk  # nothing is quantised before the first chunk is whole
    means = {name: own[:, config.length // 2 :].mean(axis=1) for name, own in nats.items()}
    starts = {name: own[:, : early - 1].mean(axis=1) for name, own in nats.items()}
    pairs = {f"lost_{name}": own - means["exact"] for name, own in means.items()}
    pairs |= {
        "gain_over_uniform": means["uniform"] - means["staircase"],
        # A cache of fewer bytes: what is gained by the comparison alone.
        "gain_of_short": means["uniform"] - means["short"],
        "gain_of_steps": means["short"] - means["staircase"],
        "gain_of_steps_early": starts["short"] - starts["staircase"],
    }
    metrics = {f"bytes_{name}": size for name, size in sizes.items()}
    for ending, name in (("", "staircase"), ("_four", "four")):
        metrics[f"bytes_apart{ending}"] = abs(sizes["uniform"] / sizes[name] - 1)
        metrics[f"bytes_share{ending}"] = sizes[name] / whole
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics


def requantised(config: Any, decoder: Decoder, text: np.ndarray) -> dict[str, float]:
    """Squared error of keys that went down all steps over that of keys quantised once.

    Levels of b and of c bits are nested where 2^b - 1 divides 2^c - 1; "apart" has steps that are
    not, of 3 bits in the place of 4.
    """
    layers = tuple(config.measured_layers)
    if max(layers) >= decoder.depth:
        raise UserError(f"measured_layers is {layers}, expected less than {decoder.depth}")
    bits, group = tuple(config.staircase.bits[1:]), config.staircase.group

    def rounded(x: jax.Array, own: int) -> jax.Array:
        codes = group_quantize(x, bits=own, group=group, axis=1)
        return group_dequantize(codes, axis=1)

    found: dict[str, list[float]] = {}
    for _, key, _ in decoder.exact(text, layers).captured.values():
        key = key[:, : key.shape[1] // group * group]
        once = jnp.square(rounded(key, bits[-1]) - key).mean()
        steps = {"": bits, "_apart": tuple(3 if own == 4 else own for own in bits)}
        for ending, own in steps.items():
            error = jnp.square(functools.reduce(rounded, own, key) - key).mean()
            found.setdefault(f"error_of_steps{ending}", []).append(float(error / once))
    return {name: float(np.mean(own)) for name, own in found.items()}
