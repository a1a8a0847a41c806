"""What the engine trains: a `Task` of pure functions over one `TrainState`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Key, PyTree

from rml.training.optimizer import Optimizer

Batch = PyTree
Metrics = dict[str, Array]
NONE: Mapping[str, Any] = MappingProxyType({})


class Loss(NamedTuple):
    """What every loss function of a task returns.

    Attributes:
      value: Scalar that is minimised.
      metrics: Scalars to be logged beside it.
      model_state: Collections of the model after the step, such as `batch_stats`; None where the
        step leaves them as they were.
      extra: Entries of `TrainState.extra` that change, such as a queue.
    """

    value: Float[Array, ""]
    metrics: Mapping[str, Array] = NONE
    model_state: PyTree = None
    extra: Mapping[str, PyTree] = NONE


class TrainState(struct.PyTreeNode):
    """Everything that training changes; nothing lives outside it.

    Attributes:
      step: Number of batches seen, as checkpoints count them, int32 scalar.
      params: Trained parameters.
      opt_state: Optimiser state.
      key: Typed key, the same through the whole run; step t draws from `fold_in(key, t)`.
      model_state: Other variable collections of the model, such as `batch_stats`.
      ema_params: Exponential moving average of `params` as `start_average` begins it, or None.
      extra: Further state of a method: momentum encoder, queue, class embeddings.
    """

    step: Any
    params: PyTree
    opt_state: PyTree
    key: Any
    model_state: PyTree = struct.field(default_factory=dict)
    ema_params: PyTree = None
    extra: PyTree = struct.field(default_factory=dict)

    @property
    def step_key(self) -> Key[Array, ""]:
        """The key of the present step, a function of (seed, step) alone."""
        return jax.random.fold_in(self.key, self.step)

    @property
    def inference_params(self) -> PyTree:
        """The averaged parameters in the types of the parameters, which stand in without any."""
        if self.ema_params is None:
            return self.params
        return optax.tree.cast_like(self.ema_params, self.params)

    @property
    def variables(self) -> PyTree:
        """The variables with which the trained model is used."""
        return {"params": self.inference_params, **self.model_state}

    def training_variables(self, params: PyTree) -> PyTree:
        """Makes the variables that a loss applies the model with, to differentiate by `params`."""
        return {"params": params, **self.model_state}

    def apply_gradients(self, grads: PyTree, optimizer: Optimizer, **changes: Any) -> "TrainState":
        """Makes one optimiser update with the moving average; `changes` replace further fields."""
        updates, opt_state = optimizer.transform.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema_params = self.ema_params
        if ema_params is not None:
            online = optax.tree.cast_like(params, ema_params)
            moved = optax.incremental_update(online, ema_params, 1 - optimizer.ema_decay)
            ema_params = at_updates(optimizer, self.step, moved, ema_params)
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            **changes,
        )


def start_average(tree: PyTree) -> PyTree:
    """Copies arrays for a moving average, in float32 at least, lest it round its steps away."""

    def start(leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        wide = jnp.issubdtype(dtype, jnp.inexact)
        return jnp.array(leaf, jnp.promote_types(dtype, jnp.float32) if wide else dtype)

    return jax.tree.map(start, tree)


def at_updates(optimizer: Optimizer, step: Any, moved: PyTree, before: PyTree) -> PyTree:
    """Takes a moved average at steps that update the parameters, at others that from before."""
    if optimizer.accumulate == 1:
        return moved
    now = optimizer.updates_at(step)
    return jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, before)


def create_state(
    key: Key[Array, ""], variables: PyTree, optimizer: Optimizer, **extra: Any
) -> TrainState:
    """Makes the state before the first step.

    Args:
      key: The run's key.
      variables: Linen variables: `params` and any other collections, boxed by their logical axes.
      optimizer: See `rml.training.build_optimizer`.
      **extra: Further state of the method.

    Returns:
      A state whose arrays still carry their logical axis names.
    """
    model_state = {k: v for k, v in variables.items() if k != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.transform.init(params),
        key=key,
        model_state=model_state,
        ema_params=start_average(params) if optimizer.ema_decay else None,
        extra=extra,
    )


@struct.dataclass
class Task:
    """A training problem as pure functions; all that the engine knows of a method.

    Attributes:
      init: `init(key) -> state`, traceable, arrays boxed by logical axes (`nn.Partitioned`).
      step: `step(state, batch) -> (state, metrics)`, traceable; `metrics["loss"]` is required and
        every metric is a scalar, or a vector whose name ends in a slash and whose entry i is
        written under `<name>i`.
      batches: `batches(part=0, parts=1) -> IterDataset`: Grain batches on the host, without end,
        this part of `parts` equal parts of each global batch; the iterator's state is the next
        batch's number.
      evaluate: `evaluate(state) -> metrics`, Python floats; runs on the host, jits what it needs,
        by all processes at once. The state is as it lies on the mesh.
      batch_spec: `jax.ShapeDtypeStruct` of a global batch, for compiling without data.
    """

    init: Callable[[Any], TrainState] = struct.field(pytree_node=False)
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]] = struct.field(
        pytree_node=False
    )
    batches: Callable[..., grain.IterDataset] = struct.field(pytree_node=False)
    evaluate: Callable[[TrainState], dict[str, float]] = struct.field(pytree_node=False)
    batch_spec: Batch = struct.field(pytree_node=False)


def as_numbers(metrics: Metrics) -> dict[str, float]:
    """Reads the metrics of a step on the host, entry i of a vector `<name>/` as `<name>/i`."""
    values: dict[str, float] = {}
    for name, own in metrics.items():
        array = np.asarray(own)
        names = [f"{name}{i}" for i in range(len(array))] if array.ndim else [name]
        values |= zip(names, map(float, array.ravel()), strict=True)
    return values


LossFn = Callable[[PyTree, TrainState, Batch], Loss]


def gradient_task(
    *,
    init_variables: Callable[[Any], PyTree],
    loss: LossFn,
    optimizer: Optimizer,
    batches: Callable[..., grain.IterDataset],
    evaluate: Callable[[TrainState], dict[str, float]],
    batch_spec: Batch,
    extra: Callable[[Any, PyTree], dict[str, Any]] | None = None,
    after: Callable[[TrainState, TrainState], tuple[dict[str, Any], Metrics]] | None = None,
) -> Task:
    """Makes the common task: the gradient of one loss, one optimiser update a step.

    Args:
      init_variables: `init_variables(key) -> variables` of a linen module.
      loss: `loss(params, state, batch) -> Loss`. It is differentiated by `params` alone and draws
        from `state.step_key`.
      optimizer: See `rml.training.build_optimizer`.
      batches: Function that makes the batches, as in `Task`.
      evaluate: Function that evaluates a state, as in `Task`.
      batch_spec: Shapes of a global batch, as in `Task`.
      extra: `extra(key, variables) -> dict`, what `TrainState.extra` holds before the first step.
      after: `after(before, state) -> (changes, metrics)`, called with the states before and after
        an update: entries of `TrainState.extra` that follow the update, and scalars to be logged.

    Returns:
      The task. Its metrics add `loss`, `learning_rate` and `grad_norm` to the loss's own.
    """

    def init(key: Any) -> TrainState:
        own = jax.random.fold_in(key, 0x1217)
        if extra is None:
            return create_state(key, init_variables(own), optimizer)
        key_model, key_extra = jax.random.split(own)
        variables = init_variables(key_model)
        return create_state(key, variables, optimizer, **extra(key_extra, variables))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def objective(params: PyTree) -> tuple[Array, Loss]:
            found = loss(params, state, batch)
            return found.value, found

        (value, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        kept = state.model_state if found.model_state is None else found.model_state
        new = state.apply_gradients(grads, optimizer, model_state=kept)
        metrics = {
            **found.metrics,
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": optimizer.schedule(state.step),
        }
        changes, more = after(state, new) if after else ({}, {})
        return new.replace(extra={**state.extra, **found.extra, **changes}), metrics | more

    return Task(init=init, step=step, batches=batches, evaluate=evaluate, batch_spec=batch_spec)
