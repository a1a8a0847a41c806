"""Ways to read prompts with needles: all keys, memories of blocks, windows over as many tokens."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention import actqkv_figures
from experiments.attention.block_recall import PROBES
from experiments.common.claims import with_bounds
from experiments.common.timing import median_ratio
from rml.attention.block_lookup import MemorySettings
from rml.attention.block_memory import BlockMemory, block_memory
from rml.data.tokens import encode
from rml.errors import UserError
from rml.evaluation import long_text
from rml.models import read_in_chunks
from rml.ops import t_interval
from rml.training import Progress, RunDirectory

CHOSEN = ("activation", "mean", "window")
"""What has options to be chosen."""
FRUITS = (
    "apple",
    "banana",
    "cherry",
    "mango",
    "lemon",
    "peach",
    "grape",
    "melon",
    "orange",
    "pear",
)
NEEDLE = " The secret fruit of the treasury is {}. Remember it."
QUESTION = " What is the secret fruit of the treasury? The secret fruit of the treasury is"


class Reading(NamedTuple):
    """What a way of reading makes of prompts.

    Attributes:
      found: [p], whether the right answer is the likeliest of all fruits.
      answer: [p], logarithm of its probability among them.
      nats: [p], of a token of the document in the prompt's second half; None where not measured.
      bytes: Size of keys and values that a query attends to on average, and of representatives.
    """

    found: np.ndarray
    answer: np.ndarray
    nats: Any
    bytes: float


def settings_of(config: Any, block: int, tokens: int, **changes: Any) -> MemorySettings:
    """A memory's settings with so many tokens in blocks."""
    memory = config.memory
    return MemorySettings(
        block=block, blocks=tokens // block, sinks=memory.sinks, window=memory.window,
        top=memory.top, metric=memory.metric, **changes,
    )  # fmt: skip


def near(config: Any, block: int) -> int:
    """Near tokens that a query of a memory attends to on average.

    Beyond the window these are those of no whole block yet, and what has left the window since the
    first query of the same chunk.
    """
    memory = config.memory
    starts = np.arange(0, max(config.needles.lengths), memory.chunk)
    left = (starts - memory.window - memory.sinks)[starts > memory.window + memory.sinks] % block
    return round(memory.window + left.mean() + (memory.chunk + 1) / 2)


def attended(config: Any, cache: Any) -> float:
    """Bytes of a prompt's keys and values that its last queries attend to, all layers together.

    Args:
      config: The run's config.
      cache: A cache of prompts; of a memory its representatives count as well.
    """
    layers, batch, slots, heads, width = cache.key.shape
    a_token = 2 * layers * heads * width * cache.key.dtype.itemsize
    if not isinstance(cache, BlockMemory):
        return a_token * slots
    s = cache.settings
    tokens = s.sinks + near(config, s.block) + s.blocks * s.block
    return a_token * tokens + cache.lookup.representatives.nbytes / batch


class Asked(NamedTuple):
    """Prompts with a needle at each depth in turn.

    Attributes:
      tokens: [p, length].
      answers: [a, 1], tokens of what the needle may be.
      right: [p], place of the right one.
      document: [p, length], which tokens are of the document rather than of needle and question.
    """

    tokens: Any
    answers: Any
    right: Any
    document: Any


def prompts(config: Any, tokenizer: Any, texts: np.ndarray, length: int) -> Asked:
    """Hides a needle in each text and asks for it."""

    def tokens(text: str) -> np.ndarray:
        return encode(tokenizer, [text], max_length=length, special=False)[0]

    answers = np.stack([tokens(f" {fruit}")[:1] for fruit in FRUITS])
    if len(np.unique(answers)) < len(FRUITS):
        raise UserError(f"the first tokens of {FRUITS} are not all different")
    draw = np.random.default_rng((config.seed, length)).permutation(len(FRUITS))
    right, depths = np.resize(draw, len(texts)), np.resize(config.needles.depths, len(texts))
    question, placed = tokens(QUESTION), []
    document = np.ones((len(texts), length), bool)
    document[:, length - len(question) :] = False
    for row, (text, which, depth) in enumerate(zip(texts, right, depths, strict=True)):
        needle = tokens(NEEDLE.format(FRUITS[which]))
        found = long_text.place_needle(
            text, needle, question, length=length, depth=depth, ends=tokens(".").tolist()
        )
        document[row, found.start : found.start + len(needle)] = False
        placed.append(found.tokens)
    return Asked(np.stack(placed), answers, right, document)


def read(config: Any, loaded: Any, cache: Any, asked: Asked, *, nats: bool) -> Reading:
    """Reads prompts through a cache."""
    tokens, answers, right, document = map(jnp.asarray, asked)
    module, variables = loaded.module, loaded.variables
    hidden, _ = read_in_chunks(module, variables, tokens, cache=cache, chunk=config.memory.chunk)

    scores = _scores(variables, hidden, tokens, answers, module=module)
    answer = jnp.take_along_axis(jax.nn.log_softmax(scores), right[:, None], axis=1)[:, 0]
    scores, half = np.asarray(scores), tokens.shape[1] // 2
    found = [long_text.found_share(own[None], np.asarray(r)[None])
             for own, r in zip(scores, right, strict=True)]  # fmt: skip
    own = None
    if nats:
        parts = (hidden[:, half:], tokens[:, half:], document[:, half:])
        own = np.asarray(_nats(variables, *parts, module=module))
    return Reading(np.array(found), np.asarray(answer), own, attended(config, cache))


@functools.partial(jax.jit, static_argnames="module")
def _scores(variables: Any, hidden: Any, tokens: Any, answers: Any, *, module: Any) -> jax.Array:
    """Log-likelihoods [p, a] of answers after prompts whose hidden states are known."""

    def of_prompt(own: jax.Array, prompt: jax.Array) -> jax.Array:
        def head(x: jax.Array) -> jax.Array:
            return module.apply(variables, x, method="logits")

        return long_text.answer_scores(lambda _: own[None], head, prompt, answers)

    return jax.vmap(of_prompt)(hidden, tokens)


@functools.partial(jax.jit, static_argnames="module")
def _nats(variables: Any, hidden: Any, tokens: Any, counted: Any, *, module: Any) -> jax.Array:
    """Mean nats [p] of a token that counts."""

    def head(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, method="logits")

    def of_text(own: tuple[jax.Array, ...]) -> jax.Array:
        states, text, counted = own
        return long_text.token_nats(states, head, text).mean(where=counted[1:])

    return jax.lax.map(of_text, (hidden, tokens, counted))


def latency(config: Any, loaded: Any, text: np.ndarray, block: int) -> float:
    """Time of reading a text with probes by activation bias over that with means of the queries.

    Args:
      config: The run's config.
      loaded: The model.
      text: Its tokens.
      block: Tokens of a block, the same of both.
    """
    tokens = jnp.asarray(text)[None]

    def reads(name: str) -> Callable[[], Any]:
        settings = settings_of(config, block, config.memory.tokens, weighting=name)
        cache = block_memory(loaded.module, 1, len(text), settings)
        return lambda: read_in_chunks(
            loaded.module, loaded.variables, tokens, cache=cache, chunk=config.memory.chunk
        )[0]

    return median_ratio(reads("activation"), reads("mean"), repeats=config.timing.repeats)


FEW = ("last", "dynamic")
"""Ways that no claim compares, which read one text a depth."""


def reading(
    config: Any, loaded: Any, texts: np.ndarray, chosen: dict[str, int], run: RunDirectory,
    progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """Needles, nats and bytes of each way of reading at equal tokens; draws them.

    What claims compare reads all texts, other ways one text a depth.
    """
    module, memory = loaded.module, config.memory
    lengths, longest = config.needles.lengths, max(config.needles.lengths)
    few = len(config.needles.depths)
    found: dict[tuple[str, int, int], Reading] = {}

    def add(name: str, length: int, tokens: int, number: int | None = None) -> None:
        own_texts = texts[:number]
        if name == "all keys":
            cache = module.init_cache(len(own_texts), length)
        elif name in ("window", "local"):
            sinks = chosen["window"] if name == "window" else memory.sinks
            reach = near(config, chosen["activation"]) + memory.sinks + tokens - sinks
            cache = module.init_cache(len(own_texts), window=reach, sinks=sinks)
        else:
            block = chosen["mean" if name == "mean" else "activation"]
            if name == "dynamic":
                how: dict[str, Any] = dict(dynamic=True, least=config.recall.least)
            else:
                how = dict(weighting=PROBES[name] or name)
            settings = settings_of(config, block, tokens, **how)
            cache = block_memory(module, len(own_texts), length, settings)
        asked = prompts(config, loaded.tokenizer, own_texts, length)
        own = read(config, loaded, cache, asked, nats=length == longest)
        found[name, length, tokens] = own
        progress.note(f"{name}, {length} tokens, {tokens} in blocks: found {own.found.mean():.2f}")

    for length in lengths:
        for name in ("all keys", *CHOSEN):
            add(name, length, memory.tokens)
    add("reversed", longest, memory.tokens)
    add("local", longest, 0)
    for name in FEW:
        add(name, longest, memory.tokens, few)
    for tokens in config.budgets:
        for name in ("activation", "window"):
            add(name, longest, tokens, few)
    actqkv_figures.of_needles(run, found, lengths, config.needles.depths, memory.tokens)
    actqkv_figures.of_bytes(run, found, longest)
    main = {name: own for (name, n, tokens), own in found.items()
            if n == longest and tokens == (0 if name == "local" else memory.tokens)}  # fmt: skip
    metrics: dict[str, float] = {}
    for name, own in main.items():
        label = name.replace(" ", "_") + ("_few_texts" if name in FEW else "")
        metrics |= {f"found_{label}": own.found.mean(), f"answer_{label}": own.answer.mean(),
                    f"nats_{label}": own.nats.mean(), f"bytes_{label}": own.bytes}  # fmt: skip

    def gap(metric: str, first: str, second: str, which: str, *, power: bool = False) -> None:
        one, other = getattr(main[first], which), getattr(main[second], which)
        ends = t_interval((one - other[: len(one)]).astype(np.float64))
        metrics.update(with_bounds(metric, map(np.exp, ends) if power else ends))

    gap("perplexity_ratio", "activation", "all keys", "nats", power=True)
    gap("perplexity_ratio_local", "local", "all keys", "nats", power=True)
    gap("nats_beyond_window", "activation", "window", "nats")
    gap("nats_local_beyond_window", "local", "window", "nats")
    gap("nats_beyond_mean", "activation", "mean", "nats")
    gap("nats_reversed_beyond_mean", "reversed", "mean", "nats")
    gap("nats_dynamic_beyond_equal", "dynamic", "activation", "nats")
    gap("found_over_window", "activation", "window", "found")
    gap("found_local_over_window", "local", "window", "found")
    gap("answer_over_mean", "activation", "mean", "answer")
    gap("answer_reversed_over_mean", "reversed", "mean", "answer")
    gap("answer_last_over_mean", "last", "mean", "answer")
    return metrics
