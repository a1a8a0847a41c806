"""A router: from features of an input to weights of experts, learned from which task each is of."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from rml.errors import UserError
from rml.models.layers import Dtype, Norm, dense
from rml.ops.shapes import check_indices, check_shapes
from rml.ops.trees import check_leaf


class Router(nn.Module):
    """MLP from features to one logit an expert: Linear, BatchNorm, leaky ReLU, dropout, twice.

    Attributes:
      experts: Number of experts.
      hidden: Hidden width; None takes twice the width of the features.
      layers: Number of hidden layers.
      dropout: Share of hidden values that training sets to zero.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: Dtype of the parameters.

    Source: Lu et al., Twin-Merging, arXiv:2406.15479, its public code.
    """

    experts: int
    hidden: int | None = None
    layers: int = 2
    dropout: float = 0.5
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b n"]:
        """Returns logits [b, experts]; training needs an rng "dropout" and updates statistics."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = self.hidden or 2 * x.shape[-1]
        axes = ("embed", "mlp")
        for i in range(self.layers):
            x = dense(hidden, axes, name=f"dense{i}", **dtypes)(x)
            x = nn.leaky_relu(Norm(axis=axes[1], name=f"norm{i}", **dtypes)(x, train=train))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            axes = axes[::-1]
        return dense(self.experts, (axes[0], None), name="out", **dtypes)(x)


def route(logits: Float[Array, "*b n"], *, top: int | None = None) -> Float[Array, "*b n"]:
    """Computes weights of experts, the softmax over the `top` largest logits; others have none.

    Args:
      logits: Logits of a router.
      top: Number of experts that each input is given; all if not given, 1 is hard routing.

    Raises:
      ValueError: `top` is not between 1 and the number of experts.
    """
    count = logits.shape[-1]
    if top is None:
        return jax.nn.softmax(logits)
    if not 1 <= top <= count:
        raise ValueError(f"top is {top}, expected 1 to the {count} experts of {logits.shape}")
    values, places = jax.lax.top_k(logits, top)
    return jnp.einsum(
        "...k,...kn->...n", jax.nn.softmax(values), jax.nn.one_hot(places, count)
    )  # fmt: skip


class LearnedRouter(NamedTuple):
    """A router that was trained.

    Attributes:
      variables: Its parameters and statistics after the best epoch.
      losses: Mean cross-entropy of each epoch, while it trains.
      accuracy: Accuracy on validation features after each epoch.
    """

    variables: PyTree
    losses: Float[Array, " epochs"]
    accuracy: Float[Array, " epochs"]


def learn_router(
    router: Router,
    key: Key[Array, ""],
    features: Float[Array, "n d"],
    tasks: Int[Array, " n"],
    validation: tuple[Float[Array, "m d"], Int[Array, " m"]],
    *,
    epochs: int = 50,
    batch_size: int = 1024,
    learning_rate: ArrayLike = 5e-4,
    weight_decay: ArrayLike = 0.0,
) -> LearnedRouter:
    """Trains a router by the cross-entropy of the task, and keeps its best epoch on other features.

    Steps are those of Adam-W, at a rate that falls linearly to zero. Every epoch has an order of
    its own and leaves out what fills no batch.

    Args:
      router: The module.
      key: Key of first parameters, orders and dropout.
      features: Features of inputs, such as a shared expert's, at least two.
      tasks: Place of the expert that each input belongs to.
      validation: Features and tasks that the epoch is chosen on; of equal epochs the first is.
      epochs: Number of passes.
      batch_size: Inputs of a step, at least two; at most all.
      learning_rate: Rate of the first step.
      weight_decay: Adam-W's decay.

    Raises:
      UserError: There are fewer than two inputs, or of a step, no validation input, or no epoch, or
        features hold NaN or infinite values, which of traced ones are not looked at.
      ValueError: Shapes do not fit or, outside `jit`, a task is the place of no expert.

    Source: Lu et al., arXiv:2406.15479; its public code chooses the epoch on test inputs.
    """
    _check_inputs(features, validation[0], epochs)
    check_shapes(
        features=(features, "n d"),
        tasks=(tasks, "n"),
        validation_features=(validation[0], "m d"),
        validation_tasks=(validation[1], "m"),
    )
    check_indices("tasks", tasks, router.experts)
    check_indices("validation tasks", validation[1], router.experts)
    if batch_size < 2:
        raise UserError(
            f"batch_size is {batch_size}, expected at least 2: statistics of one input have no "
            "variance"
        )
    size = min(batch_size, len(features))
    steps = len(features) // size
    schedule = optax.linear_schedule(learning_rate, 0.0, epochs * steps)
    optimizer = optax.adamw(schedule, weight_decay=weight_decay)
    first, order_key, dropout_key = jax.random.split(key, 3)
    variables = nn.unbox(router.init(first, features[:2]))

    def loss(params: PyTree, rest: PyTree, rows: Array, own: Array) -> tuple[Array, PyTree]:
        logits, changed = router.apply(
            {"params": params, **rest}, features[rows], train=True, rngs={"dropout": own},
            mutable=["batch_stats"],
        )  # fmt: skip
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tasks[rows])
        return jnp.mean(each), changed

    def step(carry: Any, given: Any) -> tuple[Any, Array]:
        (params, rest, state), (rows, own) = carry, given
        (value, rest), slopes = jax.value_and_grad(loss, has_aux=True)(params, rest, rows, own)
        updates, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, updates), rest, state), value

    def epoch(carry: Any, number: Array) -> tuple[Any, Any]:
        training, best, highest = carry
        order = jax.random.permutation(jax.random.fold_in(order_key, number), len(features))
        keys = jax.random.split(jax.random.fold_in(dropout_key, number), steps)
        rows = order[: steps * size].reshape(steps, size)
        training, losses = jax.lax.scan(step, training, (rows, keys))
        own = {"params": training[0], **training[1]}
        logits: Any = router.apply(own, validation[0])
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == validation[1])
        best = jax.tree.map(lambda new, old: jnp.where(accuracy > highest, new, old), own, best)
        return (training, best, jnp.maximum(accuracy, highest)), (jnp.mean(losses), accuracy)

    params = variables["params"]
    rest = {name: own for name, own in variables.items() if name != "params"}
    start = ((params, rest, optimizer.init(params)), dict(variables), -1.0)
    (_, best, _), (losses, accuracy) = jax.lax.scan(epoch, start, jnp.arange(epochs))
    return LearnedRouter(best, losses, accuracy)


def _check_inputs(features: Array, validation: Array, epochs: int) -> None:
    """Raises `UserError` unless there are inputs to learn from, and some to choose an epoch on."""
    for name, own, least, reason in (
        ("features", features, 2, "statistics of one input have no variance"),
        ("validation features", validation, 1, "the epoch is chosen on them"),
    ):
        if len(own) < least:
            raise UserError(f"{name} are {list(own.shape)}, expected at least {least}: {reason}")
        check_leaf(f"the array of {name}", own)
    if epochs < 1:
        raise UserError(f"epochs is {epochs}, expected at least 1")
