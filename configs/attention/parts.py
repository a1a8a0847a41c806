"""Parts of the attention configs."""

from typing import Any

from configs import parts


def small_lm(
    experiment: str, *, width: int, mlp: int, learning_rate: float, warmup_steps: int, steps: int
) -> dict[str, Any]:
    """Small language models of docstrings and code, 256 tokens, one for each attention."""
    return dict(
        experiment=experiment,
        seed=0,
        seeds=1,  # models of each attention
        precision="default",
        mesh=parts.mesh(),
        data=parts.source(
            "pydocs", train="train[:10%]", validation="validation[:30%]", test="test[:30%]"
        ),
        text=dict(vocabulary=1024, length=256, windows=256),
        model=dict(width=width, depth=2, heads=4, kv_heads=4, mlp=mlp),
        optimizer=parts.optimizer(
            learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=0.1
        ),
        train=parts.training(
            steps=steps, batch_size=8, eval_every=0, log_every=20, checkpoint_every=steps // 2
        ),
    )


def speeches() -> dict[str, Any]:
    """Long speeches that SmolLM2 reads."""
    return parts.source("sotu", validation="validation", test="test")
