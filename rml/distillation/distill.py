"""A student trained beside a frozen teacher by any method of the table, in one call."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from rml.distillation.methods import METHODS, Method, loss_beside
from rml.distillation.networks import Maps, Outputs
from rml.distillation.scalekd import ScaleNetwork
from rml.distillation.teachers import teacher_means
from rml.distillation.trilateral import (
    FusionRatio,
    fused_loss,
    ratio_lookahead,
    relations,
    saturation,
)
from rml.errors import UserError, unknown
from rml.ops.shapes import check_indices

TRILATERAL = "trilateral"
"""The ratio that is learned for each example."""


class Distilled(NamedTuple):
    """A trained student.

    Attributes:
      variables: Variables of the student's module.
      losses: Loss of each step, [steps].
      ratios: Mean share of the teacher at each step, [steps]; 1 for losses on features.
      deviations: Standard deviation of the shares of a batch, [steps].
      at_ends: Part of a batch whose share lies within 0.01 of 0 or 1, [steps]; a learned ratio that
        is there hardly moves, see `saturation`.
    """

    variables: PyTree
    losses: Float[Array, " steps"]
    ratios: Float[Array, " steps"]
    deviations: Float[Array, " steps"]
    at_ends: Float[Array, " steps"]


def distill(
    method: str,
    teacher: Callable[[Array], Outputs],
    student: nn.Module,
    images: Float[Array, "n ..."],
    labels: Int[Array, " _"],
    *,
    key: Key[Array, ""],
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    ratio: float | str | None = None,
    weight: float | None = None,
    validation: tuple[Array, Array] | None = None,
    path: Callable[[Array], Array] | None = None,
    lookahead: float = 0.1,
    ratio_rate: float = 1e-2,
    ratio_decay: float = 0.05,
    options: Mapping[str, Any] | None = None,
) -> Distilled:
    """Trains a student beside a teacher, by AdamW with a cosine to 0.

    A method on logits is weighted against the cross-entropy of the label, ratio · L_kd + (1 -
    ratio) · L_gt; one on features is added to it with its `weight`. With `ratio="trilateral"` the
    share of each example is learned on validation data, which is no test data. A student with exits
    (`ExitNetwork`) is taught at each of them by the same loss on logits, and L_kd is the sum; an
    option may be a sequence then, one number for each exit and last that of the student's own
    logits, as `{"gamma": (1.0, 1.0, 1.5)}` with two exits. "scalekd" teaches a `ScaleNetwork` in
    the space of a ViT's last tokens. Every epoch has an order of its own and leaves out what fills
    no batch. Another key and other rates compile nothing anew.

        student = Network(ConvNet(widths=(8, 16)), classes=10)
        found = distill("dkd", lambda x: net.apply(variables, x), student, images, labels,
                        key=jax.random.key(0), steps=500)
        logits = student.apply(found.variables, images).logits

    A ViT that teaches tokens gives those that leave its norm too, and lends its last blocks:

        end = partial(through_teacher, vit, variables)
        teacher = lambda x: Outputs(logits(x), features(x), tokens=end(last(x), start=vit.depth))
        found = distill("scalekd", teacher, ScaleNetwork(...), images, labels,
                        path=partial(end, start=vit.depth - 1), key=jax.random.key(0), steps=500)
        kept = network_variables(found.variables)

    Args:
      method: Name in `METHODS`.
      teacher: `teacher(images) -> Outputs`, frozen; its outputs are computed once.
      student: Module that gives `Outputs` of `(images, train=...)`: a `Network` or an
        `ExitNetwork`; with "scalekd" a `ScaleNetwork`. Its dropout has another mask in every step.
      images: Training images, float.
      labels: Their classes; of soft labels the arg max.
      key: Key of initial weights and of the order of examples.
      steps: Number of steps.
      batch_size: Examples of a step, of training and of validation images.
      learning_rate: Highest learning rate.
      ratio: Share of the teacher in [0, 1], or "trilateral"; that of the table if not given. It
        is not read by methods on features.
      weight: Weight of a method on features; that of the table if not given.
      validation: Images and labels on which a learned ratio is judged.
      path: Last blocks of a teacher of tokens, see `ScaleNetwork`.
      lookahead: Length of the step ahead that a learned ratio is judged by.
      ratio_rate: Learning rate of AdamW for a learned ratio. A public re-implementation has 0.1,
        which may drive shares to 0 or 1 soon.
      ratio_decay: Weight decay of the network of a learned ratio. The re-implementation has 0.05
        in Adam's gradient; AdamW's decay stands apart from it.
      options: Further arguments of the loss, such as `{"temperature": 2.0}`.

    Returns:
      The student.

    Raises:
      UserError: The method is unknown, there are not as many labels as images, there are fewer
        images than a batch, the ratio is none, a learned ratio has no validation data, not as many
        labels as images of it, or a method that does not read logits, tokens are taught to another
        student than a `ScaleNetwork` or by a teacher that gives none, or an option has not a number
        for each output.
      ValueError: A label, also of validation data, is not in [0, k) for a teacher of k classes, or
        the loss refuses an option.
    """
    if method not in METHODS:
        raise unknown("distillation method", method, METHODS)
    if len(labels) != len(images):
        raise UserError(f"labels has {len(labels)} rows, expected {len(images)}, one an image")
    row = METHODS[method]
    # Numbers of sequences are read before any trace, in which a loss could not judge them.
    given = {name: _plain(x) for name, x in (options or {}).items()}
    ratio = row.share if ratio is None else ratio
    _check(row, method, ratio, validation, len(images), batch_size)
    if (row.reads == "tokens") != isinstance(student, ScaleNetwork):
        raise UserError(
            f"student is a {type(student).__name__}, expected a ScaleNetwork with scalekd alone"
        )
    known = _outputs(teacher, images, batch_size)
    if row.reads == "tokens" and known.tokens is None:
        raise UserError(f"{method} reads a teacher's tokens, expected them in its outputs")
    classes = known.logits.shape[1]
    learned = ratio == TRILATERAL
    share = 0.0 if isinstance(ratio, str) else float(ratio)
    strength = row.weight if weight is None else weight
    if method == "crd":
        given.setdefault("size", float(len(images)))
    data = (images, labels, known.logits, known.features, known.tokens)
    means = teacher_means(jax.nn.softmax(known.logits), labels, classes=classes)
    judged = data[:2] if validation is None else validation
    check_indices("labels", labels, classes)
    check_indices("labels of validation", judged[1], classes)
    plan = _Plan(row, student, path, tuple(given.items()), batch_size, steps, learned)
    numbers = _Numbers(share, strength, learning_rate, lookahead, ratio_rate, ratio_decay)
    try:
        program = _program(plan)
    except TypeError:  # an attribute of the student or an option has no hash, as arrays have none
        program = _program.__wrapped__(plan)
    variables, (losses, shares) = program(key, data, judged, means, numbers)
    return Distilled(variables, losses, shares["mean"], shares["deviation"], shares["at_ends"])


class _Plan(NamedTuple):
    """What a training is compiled for."""

    row: Method
    student: nn.Module
    path: Callable[[Array], Array] | None
    options: tuple[tuple[str, Any], ...]
    batch_size: int
    steps: int
    learned: bool


class _Numbers(NamedTuple):
    """Arguments of a training's program: other ones compile nothing."""

    share: float
    strength: float
    learning_rate: float
    lookahead: float
    ratio_rate: float
    ratio_decay: float


@functools.lru_cache(maxsize=8)
def _program(plan: _Plan) -> Callable[..., Any]:
    """The whole training as one program, of key, data, validation data, means and numbers."""
    row, student, batch_size = plan.row, plan.student, plan.batch_size
    given, given_path = dict(plan.options), {} if plan.path is None else {"path": plan.path}
    maps, ratios = Maps(row.maps), FusionRatio()

    def parts(
        theta: PyTree, state: PyTree, batch: Any, share: Any, key: Array
    ) -> tuple[Array, Array, Any, PyTree]:
        """Of each example the losses beside the teacher and beside the label."""
        x, y, logits, features, tokens = batch
        found, state = _forward(student, theta, state, x, key, **given_path)
        label = _cross_entropy(found.logits, y)
        if row.reads == "tokens":
            return row.loss(found, logits, tokens, y, share=share, **given), label, found, state
        ours, theirs = found.logits, logits
        if row.reads == "features":
            ours, theirs = maps.apply({"params": theta["maps"]}, found.features, features)
        beside = loss_beside(row, found, ours, theirs, y, options=given)
        return beside, label.astype(beside.dtype), found, state

    def relation(found: Any, batch: Any, means: Array) -> Array:
        _, y, logits, *_ = batch
        own, known = (jax.nn.softmax(z, axis=-1) for z in (found.logits, logits))
        return relations(own, known, jax.nn.one_hot(y, logits.shape[1]), means[y])

    def start(keys: Any, first: Any, means: Array) -> Any:
        of_weights, of_maps, of_ratio = keys
        variables = nn.meta.unbox(student.init(of_weights, first[0], train=True))
        state = {name: part for name, part in variables.items() if name != "params"}
        found: Any = student.apply(variables, first[0], train=False)
        made = nn.meta.unbox(maps.init(of_maps, found.features, first[3]))
        theta = {"student": variables["params"], "maps": made.get("params", {})}
        omega = nn.meta.unbox(ratios.init(of_ratio, relation(found, first, means)))["params"]
        return theta, state, omega

    @jax.jit
    def train(key: Array, data: Any, judged: Any, means: Array, numbers: _Numbers) -> Any:
        *of_start, of_order = jax.random.split(key, 4)
        optimizer = optax.adamw(optax.cosine_decay_schedule(numbers.learning_rate, plan.steps))
        outer = optax.adamw(numbers.ratio_rate, weight_decay=numbers.ratio_decay)

        def step(carry: Any, drawn: Any) -> tuple[Any, Any]:
            (theta, state, omega, moments, outer_moments), (rows, own) = carry, drawn
            of_dropout = jax.random.fold_in(own, 1)
            batch = jax.tree.map(lambda leaf: leaf[rows], data)
            alpha = jnp.full(batch_size, numbers.share)

            def parts_of(theta: PyTree) -> tuple[Array, Array, Any, PyTree]:
                return parts(theta, state, batch, numbers.share, of_dropout)

            if plan.learned:
                encoded = relation(parts_of(theta)[2], batch, means)
                seen = jax.random.randint(own, (batch_size,), 0, len(judged[0]))
                x, y = (part[seen] for part in judged)

                def outer_loss(theta: PyTree) -> Array:
                    found, _ = _forward(student, theta, state, x, of_dropout)
                    return jnp.mean(_cross_entropy(found.logits, y))

                def ratio_of(omega: PyTree) -> Array:
                    return jnp.asarray(ratios.apply({"params": omega}, encoded))

                _, ahead = ratio_lookahead(
                    ratio_of, lambda theta: parts_of(theta)[:2], outer_loss, theta,
                    omega, learning_rate=numbers.lookahead,
                )  # fmt: skip
                updates, outer_moments = outer.update(ahead.gradient, outer_moments, omega)
                omega = optax.apply_updates(omega, updates)
                alpha = ratio_of(omega)

            def objective(theta: PyTree) -> tuple[Array, PyTree]:
                beside, label, _, new = parts_of(theta)
                if row.reads == "features":
                    return jnp.mean(label + numbers.strength * beside), new
                if row.reads == "tokens":
                    return jnp.mean(beside), new
                return jnp.mean(fused_loss(alpha, beside, label)), new

            (value, state), gradient = jax.value_and_grad(objective, has_aux=True)(theta)
            updates, moments = optimizer.update(gradient, moments, theta)
            theta = optax.apply_updates(theta, updates)
            shares = jnp.ones_like(alpha) if row.reads == "features" else alpha
            return (theta, state, omega, moments, outer_moments), (value, saturation(shares))

        theta, state, omega = start(of_start, jax.tree.map(lambda leaf: leaf[:2], data), means)
        of_train, of_validation = jax.random.split(of_order)
        rows = _rows(of_train, len(data[0]), batch_size=batch_size, steps=plan.steps)
        drawn = rows, jax.random.split(of_validation, plan.steps)
        carry: Any = theta, state, omega, optimizer.init(theta), outer.init(omega)
        (theta, state, *_), course = jax.lax.scan(step, carry, drawn)
        return {"params": theta["student"], **state}, course

    return train


def _forward(
    student: nn.Module, theta: PyTree, state: PyTree, x: Array, key: Array, **options: Any
) -> tuple[Any, PyTree]:
    variables = {"params": theta["student"], **state}
    found, changed = student.apply(
        variables, x, train=True, mutable=list(state), rngs={"dropout": key}, **options
    )
    return found, changed


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _rows(
    key: Key[Array, ""], count: int, *, batch_size: int, steps: int
) -> Int[Array, "steps batch"]:
    """Rows of every step's batch; one order an epoch, since to sort all in each step is slow."""
    each = count // batch_size

    def epoch(key: Array) -> Array:
        return jax.random.permutation(key, count)[: each * batch_size]

    orders = jax.lax.map(epoch, jax.random.split(key, -(-steps // each)))
    return orders.reshape(-1, batch_size)[:steps]


def _plain(option: Any) -> Any:
    """Makes numbers of Python of an array; a program is found again by its options."""
    if isinstance(option, jax.Array | np.ndarray):
        option = option.tolist()
    return tuple(map(_plain, option)) if isinstance(option, list | tuple) else option


def _outputs(teacher: Callable[[Array], Outputs], images: Array, batch_size: int) -> Outputs:
    """A teacher's outputs for all images, a batch at a time, so that its memory is bounded."""
    apply = jax.jit(teacher)
    starts = range(0, len(images), batch_size)
    parts = [apply(images[i : i + batch_size]) for i in starts]
    found = [own._replace(exits=None, stages=None) for own in parts]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *found)


def _check(
    row: Method, method: str, ratio: float | str, validation: Any, size: int, batch_size: int
) -> None:
    if not 1 <= batch_size <= size:
        raise UserError(f"batch_size is {batch_size}, expected 1 to {size}, the number of images")
    if isinstance(ratio, str) and ratio != TRILATERAL:
        raise unknown("ratio", ratio, [TRILATERAL])
    if not isinstance(ratio, str) and not 0 <= ratio <= 1:
        raise UserError(f"ratio is {ratio}, expected a share in [0, 1] or {TRILATERAL!r}")
    if ratio != TRILATERAL:
        return
    if row.reads != "logits":
        raise UserError(
            f"{method} reads {row.reads}, expected a method on logits for a learned ratio"
        )
    if validation is None or not len(validation[0]):
        raise UserError("a learned ratio needs validation data, expected images and labels of it")
    if (found := len(validation[1])) != (expected := len(validation[0])):
        raise UserError(f"validation has {found} labels, expected {expected}, one an image")
