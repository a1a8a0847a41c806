"""Optimisers and schedules from optax, chosen by config."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from rml.errors import UserError, unknown
from rml.ops.trees import is_stacked

# Parameters by these names scale, shift or position features: weight decay leaves them alone, and
# so does the trust ratio of LARS (arXiv:1708.03888; SimCLR, arXiv:2002.05709, Appendix B.9). That
# of LAMB is of all leaves, as in `optax.lamb`.
NOT_DECAYED = ("bias", "scale", "cls", "position", "temperature")
# Modules without weight decay: a ViT's patch projection may be frozen, and decay would move it.
NOT_DECAYED_MODULES = ("patches",)
KEYS = (
    "name",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "final_scale",
    "weight_decay",
    "momentum",
    "b2",
    "clip_norm",
    "accumulate",
    "ema_decay",
)
# What decides which parts the program has.
STRUCTURAL = ("warmup_steps", "clip_norm", "accumulate", "ema_decay")


class Optimizer(NamedTuple):
    """An optax transformation with what the engine logs and averages beside it.

    Attributes:
      transform: The gradient transformation.
      schedule: Learning rate as a function of the step (batches seen, not updates, where
        gradients are accumulated).
      ema_decay: Decay of the parameters' moving average an update; 0 keeps none.
      accumulate: Batches an update.
    """

    transform: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    ema_decay: float
    accumulate: int = 1

    def updates_at(self, step: Any) -> Any:
        """Tells whether parameters move at a step, counted from 0."""
        return (step + 1) % self.accumulate == 0


class KarState(NamedTuple):
    """Averages of the gradients before the present one.

    Attributes:
      short: Average with the first decay.
      long: Average with the second.
    """

    short: PyTree
    long: PyTree


def kar(
    learning_rate: optax.ScalarOrSchedule, betas: tuple[float | jax.Array, ...] = (0.5, 0.95)
) -> optax.GradientTransformation:
    """Makes Kar3: three signs a step, of the gradient and of two averages of those before it.

    p ← p - η (sign g + sign m₁ + sign m₂), and only then m_i ← β_i m_i + (1 - β_i) g. Both start at
    0, whose sign is 0. There is no weight decay.

    Args:
      learning_rate: Rate η, or a schedule of it.
      betas: Decays of the two averages, in [0, 1).

    Returns:
      The transformation.

    Raises:
      UserError: A decay is out of range, or there are not two.

    Source: `Kar3` of the public code of Zhang, arXiv:2401.17948 (lalalune/Terminator at 98873b5).
    """
    if len(betas) != 2:
        raise UserError(f"betas of kar are {betas}, expected two, not {len(betas)}")
    for beta in betas:
        if not isinstance(beta, jax.Array) and not 0 <= beta < 1:
            raise UserError(f"betas of kar are {betas}, expected two numbers in [0, 1)")

    def init(params: PyTree) -> KarState:
        return KarState(*(jax.tree.map(jnp.zeros_like, params) for _ in betas))

    def update(updates: PyTree, state: KarState, params: Any = None) -> tuple[PyTree, KarState]:
        del params
        signs = jax.tree.map(
            lambda g, *means: sum(map(jnp.sign, means), start=jnp.sign(g)), updates, *state
        )
        averages = (
            jax.tree.map(lambda m, g, b=beta: b * m + (1 - b) * g, mean, updates)
            for beta, mean in zip(betas, state, strict=True)
        )
        return signs, KarState(*averages)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def by_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a stateless transformation of leaves to each layer of those that hold all layers.

    Trust ratios are of layers, and a scanned transformer has one leaf for a kind of parameter.
    """

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        def one(update: Any, param: Any) -> Any:
            return transform.update(update, state, param)[0]

        def of_leaf(path: tuple[Any, ...], update: Any, param: Any) -> Any:
            return (jax.vmap(one) if is_stacked(path) else one)(update, param)

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params), state

    return optax.GradientTransformation(transform.init, update)


def decay_mask(params: PyTree) -> PyTree:
    """Marks where weight decay applies.

    It spares biases, scales, class tokens, positions, temperatures and patch projections.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        if any(module in names[:-1] for module in NOT_DECAYED_MODULES):
            return False
        return not (names and any(part in names[-1] for part in NOT_DECAYED))

    return jax.tree_util.tree_map_with_path(decays, params)


def _number(value: Any) -> Any:
    """A float, or the traced array in its place where many runs are one program."""
    return value if isinstance(value, jax.Array) else float(value)


def build_schedule(config: Mapping[str, Any], updates: int) -> optax.Schedule:
    """Builds the learning-rate schedule over `updates` optimiser updates."""
    peak, warmup = _number(config["learning_rate"]), int(config["warmup_steps"])
    if warmup > updates:
        raise UserError(
            f"optimizer.warmup_steps is {warmup}, more than the {updates} updates of the run"
        )
    scale = _number(config["final_scale"])
    if config["schedule"] == "constant":
        rest = optax.constant_schedule(peak)
    elif config["schedule"] == "warmup_cosine":
        rest = optax.cosine_decay_schedule(peak, max(updates - warmup, 1), alpha=scale)
    elif config["schedule"] == "warmup_linear":
        rest = optax.linear_schedule(peak, peak * scale, max(updates - warmup, 1))
    else:
        raise unknown(
            "optimizer.schedule",
            str(config["schedule"]),
            ("constant", "warmup_cosine", "warmup_linear"),
        )
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])


def build_optimizer(config: Mapping[str, Any], *, steps: int) -> Optimizer:
    """Builds the optimiser that a config names.

    Weight decay is masked by `decay_mask`, and so is the trust ratio of LARS. That of LAMB is of
    all leaves, as in `optax.lamb`, and in both it is of one layer at a time.

    Args:
      config: All of `KEYS`: `name` (adamw, lars, lamb, sgd, kar), `learning_rate` (peak),
        `schedule` (warmup_cosine, warmup_linear, constant), `warmup_steps` (updates),
        `final_scale` (last over peak rate), `weight_decay` (0 with kar), `momentum` (first-moment
        decay) and `b2`, with kar the decays of its two averages,
        `clip_norm` (global gradient norm, 0 for none), `accumulate` (batches an update),
        `ema_decay` (0 for no average).
      steps: Batches that the run sees.

    Returns:
      The optimiser.

    Raises:
      UserError: An unknown or missing key, an unknown name, a value out of range, or a traced one
        that decides which parts the program has.
    """
    if steps < 1:
        raise UserError(f"train.steps is {steps}, expected at least 1")
    for key in config:
        if key not in KEYS:
            raise unknown("key of config.optimizer", key, KEYS)
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise UserError(f"config.optimizer has no {missing[0]!r}; it needs {', '.join(KEYS)}")
    structural = (*STRUCTURAL, "weight_decay") if config["name"] == "kar" else STRUCTURAL
    for key in KEYS:
        value = config[key]
        if key in structural and isinstance(value, jax.core.Tracer):
            raise UserError(f"optimizer.{key} must be one number for runs of one program")
        if key in ("name", "schedule") or isinstance(value, jax.Array):
            continue
        if not isinstance(value, Real):
            raise UserError(f"optimizer.{key} is {value!r}, expected a number")
        if key in ("accumulate", "warmup_steps") and value % 1 != 0:
            raise UserError(f"optimizer.{key} is {value}, expected a whole number")
    accumulate = int(config["accumulate"])
    if accumulate < 1:
        raise UserError(f"optimizer.accumulate is {accumulate}, expected at least 1")
    if not 0 <= config["ema_decay"] < 1:
        raise UserError(f"optimizer.ema_decay is {config['ema_decay']}, expected [0, 1)")
    if steps < accumulate:
        raise UserError(
            f"optimizer.accumulate is {accumulate}, more than the {steps} batches of the run"
        )
    decays = dict.fromkeys(("momentum", "b2"), 1)
    sizes = ("learning_rate", "final_scale", "weight_decay", "clip_norm", "warmup_steps")
    for key, most in {**decays, **dict.fromkeys(sizes, np.inf)}.items():
        value = config[key]
        if not isinstance(value, jax.Array) and not 0 <= value < most:
            raise UserError(
                f"optimizer.{key} is {value}, expected at least 0" + " and below 1" * (most == 1)
            )
    schedule = build_schedule(config, steps // accumulate)
    decay, momentum = _number(config["weight_decay"]), _number(config["momentum"])
    name = config["name"]
    if name == "adamw":
        transform = optax.adamw(
            schedule, b1=momentum, b2=config["b2"], weight_decay=decay, mask=decay_mask
        )
    elif name == "lamb":
        transform = optax.chain(
            optax.scale_by_adam(momentum, config["b2"], eps=1e-6),
            optax.add_decayed_weights(decay, mask=decay_mask),
            by_layer(optax.scale_by_trust_ratio()),
            optax.scale_by_learning_rate(schedule),
        )
    elif name == "lars":
        transform = optax.chain(
            optax.add_decayed_weights(decay, mask=decay_mask),
            optax.masked(by_layer(optax.scale_by_trust_ratio(trust_coefficient=1e-3)), decay_mask),
            optax.scale_by_learning_rate(schedule),
            optax.trace(momentum),
        )
    elif name == "sgd":
        # A traced momentum keeps its buffer, be it 0 or not.
        kept = momentum if isinstance(momentum, jax.Array) else momentum or None
        transform = optax.chain(
            optax.add_decayed_weights(decay, mask=decay_mask),
            optax.sgd(schedule, momentum=kept),
        )
    elif name == "kar":
        if decay != 0:
            raise UserError(f"optimizer.weight_decay is {decay}, expected 0 with kar")
        transform = kar(schedule, (momentum, config["b2"]))
    else:
        raise unknown("optimizer.name", str(name), ("adamw", "kar", "lamb", "lars", "sgd"))
    if config["clip_norm"]:
        transform = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), transform)
    if accumulate > 1:
        transform = optax.MultiSteps(transform, accumulate).gradient_transformation()
    return Optimizer(
        transform, lambda step: schedule(step // accumulate), config["ema_decay"], accumulate
    )
