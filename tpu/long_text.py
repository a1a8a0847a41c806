"""A decoder trained on one long text, for slices that are not there.

The decoder has SmolLM2-135M's shape, in bfloat16 with float32 parameters. The text's tokens are
spread over all devices; attention is exact, round their ring (`rml.attention.attend_over_mesh`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rml.attention import attend_over_mesh, attention_of
from rml.errors import UserError
from rml.models import Llama
from rml.training import (
    Loss,
    Task,
    build_optimizer,
    gradient_task,
    make_mesh,
    split_tokens,
)
from tpu.compile import Compiled, compile_task

SHAPE: dict[str, Any] = dict(
    vocabulary=49_152, width=576, depth=30, heads=9, kv_heads=3, mlp=1536, tied=True
)
OPTIMIZER = dict(
    name="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0, final_scale=1.0,
    weight_decay=0.1, momentum=0.9, b2=0.95, clip_norm=1.0, accumulate=1, ema_decay=0.0,
)  # fmt: skip


def long_text(tokens: int) -> Task:
    """The problem of predicting every next token of one text of so many tokens."""
    module = Llama(
        **SHAPE, positions=tokens, remat=True, dtype=jnp.bfloat16, param_dtype=jnp.float32,
        attention=attention_of(attend_over_mesh),
    )  # fmt: skip

    def loss(params: Any, state: Any, batch: Any) -> Loss:
        del state
        text = batch["tokens"]
        with split_tokens():
            hidden = module.apply({"params": params}, text[None])
            logits: Any = module.apply({"params": params}, hidden, method="logits")
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[0], jnp.roll(text, -1))
        return Loss(jnp.mean(nats, where=jnp.arange(tokens) < tokens - 1))

    def no_batches(part: int = 0, parts: int = 1) -> Any:
        raise UserError("this problem is compiled, not trained")

    return gradient_task(
        loss=loss,
        init_variables=lambda key: module.init(key, jnp.zeros((1, 2), jnp.int32)),
        optimizer=build_optimizer(OPTIMIZER, steps=1),
        batches=no_batches,
        evaluate=lambda state: {},
        batch_spec={"tokens": jax.ShapeDtypeStruct((tokens,), jnp.int32)},
    )


def compile_text(tokens: int, devices: Sequence[Any]) -> tuple[Compiled, ConfigDict]:
    """Compiles the step for devices.

    Args:
      tokens: Length of the text, a multiple of the number of devices.
      devices: Devices to compile for.

    Returns:
      The compiled step, and what stands for its config in a report.

    Raises:
      DoesNotFit: The compiler found that memory does not suffice.
      UserError: The devices do not divide the tokens.
    """
    if tokens < 1 or tokens % len(devices):
        raise UserError(f"tokens is {tokens}, expected a multiple of the {len(devices)} devices")
    compiled = compile_task(long_text(tokens), make_mesh({"data": len(devices)}, devices))
    config = ConfigDict(dict(experiment=f"a decoder on a text of {tokens:,} tokens", model={}))
    return compiled, config
