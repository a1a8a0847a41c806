"""ActQKV in a trained language model: blocks found, needles found, and what a text loses.

Xiao et al., Activation-aware Probe-Query: Effective Key-Value Retrieval for Long-Context LLMs
Inference, arXiv:2502.13542. SmolLM2 reads long speeches through a memory of blocks. Probes by
activation bias stand beside InfLLM's mean of the queries, their norms, the attention that their
tokens receive, and the last query; memories beside a window with sinks that attends to as many
tokens. Of the paper's baselines QLLM, which needs a question, and TokenSelect (Wu et al., 2024,
arXiv:2411.02886), which picks single tokens, are left out. Options are those that cover most of
exact attention in a validation speech, of as many tries each. Time over that with the mean is
measured and not claimed. Sizes and margins are this repository's; the authors' models are fifty
times larger and their texts up to fifty times longer.
"""

from typing import Any

import jax
import numpy as np

from experiments.attention import actqkv_figures
from experiments.attention.actqkv_recall import choose, recall
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.attention.memory_readings import CHOSEN, latency, reading
from experiments.ranges import Range
from rml.attention.block_lookup import MemorySettings
from rml.attention.block_memory import block_memory
from rml.errors import UserError
from rml.models import pretrained
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2502.13542 and the authors' code; sizes and margin are this repository's"
ADDED = f"{SOURCE}; added after the first measurement"
GROUPS = f"{SOURCE}; changed after the first measurement: each group of heads needs its own blocks"
TEXT = f"{SOURCE}; changed after the first measurement: needle and question do not count"
CLAIMS = (
    Claim("At 20% of blocks the activation probe recalls 1 point more needed blocks than the mean",
          "gain_recall", ">=", 0.01, GROUPS, stated="2026-11-27", null="gain_recall_reversed"),
    Claim("It covers half a point more of exact attention to blocks than the mean",
          "gain_covered", ">=", 0.005, GROUPS, stated="2026-11-27", null="gain_covered_reversed"),
    Claim("It covers 5 points more than as many of the nearest blocks",
          "covered_over_recent", ">=", 0.05, GROUPS,
          stated="2026-11-27", null="covered_random_over_recent"),
    Claim("Layers' budgets by information cover half a point more than equal ones",
          "gain_dynamic", ">=", 0.005, GROUPS, stated="2026-11-27", null="gain_dynamic_turned"),
    Claim("Perplexity of long texts is within 3% of that with all keys",
          "perplexity_ratio", "<=", 1.03, TEXT,
          stated="2026-11-27", null="perplexity_ratio_local"),
    Claim("It is below that of a window with sinks over as many tokens",
          "nats_beyond_window", "<=", 0.0, TEXT,
          stated="2026-11-27", null="nats_local_beyond_window"),
    Claim("It is below that with the mean of the queries as the probe",
          "nats_beyond_mean", "<=", 0.0, ADDED,
          stated="2026-11-27", null="nats_reversed_beyond_mean"),
    Claim("20 points more needles are found than with a window and sinks over as many tokens",
          "found_over_window", ">=", 0.2, SOURCE,
          stated="2026-11-26", null="found_local_over_window"),
    Claim("A needle's answer is 0.1 nats likelier than with the mean of the queries",
          "answer_over_mean", ">=", 0.1, SOURCE,
          stated="2026-11-26", null="answer_reversed_over_mean"),
)  # fmt: skip
RANGES = {"recall.documents": Range(2, whole=True), "needles.texts": Range(1, whole=True)}
CAPTIONS = actqkv_figures.CAPTIONS
PICTURE = "recall.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses options, measures recall, needles, perplexity and bytes, draws."""
    check(config)
    progress = Progress()
    loaded = pretrained.load(config.model.name, **config.model.get("options", {}))
    decoder = Decoder(loaded.module, loaded.variables)
    if max(config.recall.measured_layers) >= decoder.depth:
        raise UserError(
            f"recall.measured_layers is {config.recall.measured_layers}, expected less than "
            f"{decoder.depth}"
        )
    (speech,) = speeches(config, "validation", loaded.tokenizer, config.recall.length)[:1]
    chosen = choose(config, decoder, speech)
    progress.note(f"chosen on validation: {chosen}")
    metrics: dict[str, float] = {f"chosen_{name}": value for name, value in chosen.items()}
    metrics |= {f"tries_{name}": len(tries) for name, tries in config.tries.items()}
    longest = max(config.recall.length, *config.needles.lengths)
    texts = speeches(config, "test", loaded.tokenizer, longest)
    texts = texts[np.random.default_rng(config.seed).permutation(len(texts))]
    needed = config.recall.documents + len(config.needles.depths) * config.needles.texts
    if len(texts) < needed:
        raise UserError(f"{len(texts)} test texts have {longest} tokens, expected {needed}")
    own = texts[: config.recall.documents]
    metrics |= recall(config, decoder, own, chosen["activation"], loaded.tokenizer, run)
    progress.note(f"recall: activation {metrics['recall_activation']:.3f}, "
                  f"mean {metrics['recall_mean']:.3f}")  # fmt: skip
    others = texts[config.recall.documents : needed]
    metrics |= reading(config, loaded, others, chosen, run, progress)
    metrics |= bytes_at_scale(config, loaded.module)
    text = others[0, : config.timing.length]
    metrics["time_over_mean"] = latency(config, loaded, text, chosen["activation"])
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if set(config.tries) != set(CHOSEN):
        raise UserError(f"tries has {sorted(config.tries)}, expected {sorted(CHOSEN)}")
    if len({len(values) for values in config.tries.values()}) > 1:
        raise UserError(f"tries has {config.tries.to_dict()}, expected equally many of each")
    memory, options = config.memory, config.recall
    for name in ("activation", "mean"):
        for block in config.tries[name]:
            if any(tokens % block for tokens in (memory.tokens, *config.budgets)):
                raise UserError(
                    f"tries.{name} has blocks of {block}, expected divisors of memory.tokens="
                    f"{memory.tokens} and budgets={config.budgets}"
                )
    if options.length % memory.chunk:
        raise UserError(
            f"recall.length is {options.length}, expected a multiple of memory.chunk={memory.chunk}"
        )
    if options.at not in options.shares:
        raise UserError(f"recall.at is {options.at}, expected one of {options.shares}")


def bytes_at_scale(config: Any, module: Any) -> dict[str, float]:
    """Share of a whole cache's bytes that a step reads with the paper's sizes, and with all."""
    length = config.scale.length
    whole = jax.eval_shape(lambda: module.init_cache(1, length)).bytes

    def share(blocks: int) -> float:
        settings = MemorySettings()._replace(blocks=blocks)
        memory = jax.eval_shape(lambda: block_memory(module, 1, length, settings))
        return memory.bytes_read / whole

    settings = MemorySettings()
    all_blocks = (length - settings.sinks) // settings.block
    return {
        "bytes_share": share(settings.blocks), "bytes_share_all_blocks": share(all_blocks),
    }  # fmt: skip
