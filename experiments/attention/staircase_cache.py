"""A cache that loses bits with age, in a trained language model, beside uniform ones.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, the table of staircase adaptive quantisation. SmolLM2 reads long speeches some
tokens at a time through caches of one quantiser: the staircase; uniform ones as KIVI's, of the
staircase's fewest bits and of four, whose residuals are as long as equal bytes allow; and with the
staircase's residual its fewest bits, four and eight for everything old. The paper reports no
experiment that we know of: sizes and margins are ours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.attention import staircase_figures
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.attention.staircase_readings import (
    mean_bytes,
    read,
    requantised,
    variants,
    whole_bytes,
)
from experiments.common.claims import with_bounds
from rml.errors import UserError
from rml.models import pretrained
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2410.18441, staircase adaptive quantisation; data, sizes and margin are ours"
CLAIMS = (
    Claim("A text loses less by the staircase than by a uniform cache of 4 bits and equal bytes",
          "gain_over_uniform_four", ">=", 0.0, f"{SOURCE}; changed after the first measurement: a "
          "cache of 2 bits, which the staircase is above, is a weak opponent",
          stated="2026-11-30", null="uniform_over_uniform_four"),
    Claim("Going down the steps adds at most 2% to the squared error of quantising once",
          "error_of_steps", "<=", 1.02, f"{SOURCE}; levels of 8, 4 and 2 bits are nested",
          stated="2026-11-26", null="error_of_steps_apart"),
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


def summarised(
    config: Any, nats: Mapping[str, np.ndarray], sizes: Mapping[str, float], whole: float
) -> dict[str, float]:
    """Metrics of the last half of texts, with intervals over texts; and of bytes."""
    means = {name: own[:, config.length // 2 :].mean(axis=1) for name, own in nats.items()}
    pairs = {f"lost_{name}": own - means["exact"] for name, own in means.items()}
    pairs |= {
        "gain_over_uniform": means["uniform"] - means["staircase"],
        "gain_over_uniform_four": means["uniform_four"] - means["staircase"],
        # Two caches of as many bytes without steps.
        "uniform_over_uniform_four": means["uniform_four"] - means["uniform"],
        # A cache of fewer bytes: what is gained by the comparison alone.
        "gain_of_short": means["uniform"] - means["short"],
        "gain_of_steps": means["short"] - means["staircase"],
        # The bytes of the steps without steps: all of them lengthen the residual.
        "gain_of_residual": means["short"] - means["uniform"],
    }
    metrics = {f"bytes_{name}": size for name, size in sizes.items()}
    for ending, name in (("", "staircase"), ("_four", "four")):
        metrics[f"bytes_apart{ending}"] = abs(sizes["uniform"] / sizes[name] - 1)
        metrics[f"bytes_share{ending}"] = sizes[name] / whole
    metrics["bytes_apart_uniform_four"] = abs(sizes["uniform_four"] / sizes["staircase"] - 1)
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics
