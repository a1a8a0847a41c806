"""A small real problem: a linen MLP on scikit-learn's digits."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

BATCH = 64
OPTIMIZER = dict(
    name="adamw", learning_rate=0.01, schedule="warmup_cosine", warmup_steps=0, final_scale=0.0,
    weight_decay=0.0, momentum=0.9, b2=0.999, clip_norm=0.0, accumulate=1, ema_decay=0.0,
)  # fmt: skip


class Batches:
    """Batch i of the digits, as arrays; `poison` makes one batch NaN."""

    def __init__(self, poison: int | None, part: int = 0, parts: int = 1):
        digits = load_digits()
        self.x = (digits.data / 16).astype(np.float32)
        self.y = digits.target.astype(np.int32)
        self.poison = poison
        self.first, self.rows = part * BATCH // parts, BATCH // parts

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index * BATCH + self.first
        rows = slice(first, first + self.rows)
        x = self.x[rows] * (np.nan if index == self.poison else 1)
        return {"x": x, "y": self.y[rows]}


class Classifier(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        hidden = nn.with_logical_partitioning(init, ("embed", "mlp"))
        out = nn.with_logical_partitioning(init, ("mlp", None))
        return nn.Dense(10, kernel_init=out)(nn.relu(nn.Dense(self.width, kernel_init=hidden)(x)))


def build_task(
    steps: int = 40, *, poison: int | None = None, width: int = 32, batch: int = BATCH,
    **optimizer: Any,
) -> Task:  # fmt: skip
    """The task; `poison` makes one of its batches NaN."""
    model = Classifier(width)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        x = batch["x"] + 0.1 * jax.random.normal(state.step_key, batch["x"].shape)
        logits = model.apply({"params": params}, x)
        return Loss(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean())

    def evaluate(state: Any) -> dict[str, float]:
        return {"norm": float(optax.tree.norm(state.inference_params))}

    return gradient_task(
        init_variables=lambda key: model.init(key, jnp.zeros((1, 64))),
        loss=loss,
        optimizer=build_optimizer({**OPTIMIZER, **optimizer}, steps=steps),
        batches=lambda part=0, parts=1: (
            grain.MapDataset.source(Batches(poison, part, parts)).seed(0).repeat().to_iter_dataset()
        ),
        evaluate=evaluate,
        batch_spec={
            "x": jax.ShapeDtypeStruct((batch, 64), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Builds the task; of equal arguments one, whose programs JAX compiles once."""
    return functools.cache(build_task)


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    """Standard normal float64 arrays from a seed."""
    return lambda seed, *shape: np.random.default_rng(seed).standard_normal(shape)
