"""Distillation by logits: a student's distribution over classes follows a teacher's.

All take `(student, teacher, labels)` and give a value of each example, as those on features do
(`rml.losses.feature_distillation`), so that one takes the place of another.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.losses.cross_entropy import sum_of_products
from rml.ops.shapes import check_above_0, check_between, check_finite, check_indices, check_shapes
from rml.ops.similarity import normalize, wide

_HOT = 32.0  # above it divergences are computed from differences of logits where these are small


def kd_loss(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"] | None = None,
    *,
    temperature: float | Float[Array, ""] = 4.0,
) -> Float[Array, " b"]:
    """Computes τ² KL(p ‖ q) of p = softmax(teacher / τ) and q = softmax(student / τ).

    The factor keeps the size of the gradient: as τ grows the loss goes to half the mean square of
    the difference of centred logits. A share of this loss in a sum depends on it.

    Args:
      student: The student's logits.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.
      temperature: Temperature τ of both, above 0. A traced one of hundreds costs digits, as the
        divergence is the rest of larger numbers there.

    Returns:
      The loss of each example, in float32 or wider; 0 where the distributions are equal.

    Raises:
      ValueError: If shapes do not fit, or `temperature` is not a finite number above 0.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
    Section 2.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"))
    del labels
    logs, targets = _logs(student, temperature), _targets(teacher, temperature)
    divergence = _divergence(targets, logs)
    if _is_hot(temperature):
        chances = jnp.exp(targets)
        apart, near = _apart(student, teacher, chances, temperature)
        divergence = jnp.where(near, _moments(chances, apart)[1], divergence)
    return temperature**2 * divergence


def soft_cross_entropy(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"] | None = None,
    *,
    temperature: float | Float[Array, ""] = 4.0,
) -> Float[Array, " b"]:
    """Computes -τ² Σ_k p_k log q_k, which is `kd_loss` and τ² times the teacher's entropy.

    Args:
      student: The student's logits.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.
      temperature: Temperature τ of both, above 0.

    Returns:
      The loss of each example, in float32 or wider.

    Raises:
      ValueError: If shapes do not fit, or `temperature` is not a finite number above 0.

    Source: Hinton et al., arXiv:1503.02531, Section 2.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"))
    del labels
    targets = jnp.exp(_targets(teacher, temperature))
    return -(temperature**2) * sum_of_products(targets, _logs(student, temperature))


def annealing_loss(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"] | None = None,
    *,
    progress: float | Float[Array, ""],
    temperature: float | Float[Array, ""] = 4.0,
) -> Float[Array, " b"]:
    """Computes the mean square over classes of student - Φ teacher, whose logits begin small.

    Φ = 1 - (T - 1) / τ grows from 1/τ to 1 as the temperature T falls from τ to 1. This is the
    first stage of annealing; in the second, students learn the label alone.

    Args:
      student: The student's logits.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.
      progress: Share of the first stage that is over; T falls evenly with it. Below 0 and above 1
        it is 0 and 1.
      temperature: Highest temperature τ, at least 1.

    Returns:
      The loss of each example, in float32 or wider; 0 where the student's logits are Φ times the
      teacher's.

    Raises:
      ValueError: If shapes do not fit, or `temperature` is not a finite number of at least 1.

    Source: Jafari et al., Annealing Knowledge Distillation, arXiv:2104.07163. Of the paper its
    abstract was read; Φ and the mean square are those of public code that follows it, where T is a
    whole number for some epochs.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"))
    check_between(1, temperature=temperature)
    check_finite(temperature=temperature)
    del labels
    ours, theirs = wide(student, jax.lax.stop_gradient(teacher))
    current = temperature - (temperature - 1) * jnp.clip(progress, 0, 1)
    return jnp.mean((ours - (1 - (current - 1) / temperature) * theirs) ** 2, axis=-1)


def dkd_loss(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    target_weight: float | Float[Array, ""] = 1.0,
    others_weight: float | Float[Array, ""] = 8.0,
    temperature: float | Float[Array, ""] = 4.0,
) -> Float[Array, " b"]:
    """Computes the decoupled loss: what is said of the label, and of the other classes among them.

    τ² (α KL(b ‖ b') + β KL(p̂ ‖ q̂)), where b = (p_y, 1 - p_y) is the chance of the label and of
    anything else, and p̂ the distribution over the other classes, given that it is one of them.
    `kd_loss` is the same with α = 1 and β = 1 - p_y, so that the second part counts little where
    the teacher is sure. Where its logits of all other classes are -inf, the second part is 0.

    Args:
      student: The student's logits, of two classes or more.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Classes in [0, k).
      target_weight: Weight α of the label's part, at least 0.
      others_weight: Weight β of the part of the other classes, at least 0.
      temperature: Temperature τ of all, above 0. A traced one of hundreds costs digits.

    Returns:
      The loss of each example, in float32 or wider; 0 where the distributions are equal.

    Raises:
      ValueError: If shapes do not fit, there are fewer than two classes, a weight is below 0 or
        infinite, `temperature` is not a finite number above 0 or, outside `jit`, a label is out of
        range.

    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679, eq. 7.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"), labels=(labels, "n"))
    if student.shape[1] < 2:
        raise ValueError(f"dkd_loss needs at least 2 classes, got logits of shape {student.shape}")
    check_indices("labels", labels, student.shape[1])
    check_between(0, target_weight=target_weight, others_weight=others_weight)
    check_finite(target_weight=target_weight, others_weight=others_weight)
    own = jax.nn.one_hot(labels, student.shape[1], dtype=bool)

    def parts(logits: Array) -> tuple[Array, Array]:
        logs = _logs(logits, temperature)
        rest = jnp.where(own, -jnp.inf, logs)
        some = jnp.any(rest > -jnp.inf, axis=-1)[:, None]
        # The logarithm of a sum of zeros has no finite gradient: another sum takes its place.
        total = jax.nn.logsumexp(jnp.where(some, rest, 0), axis=-1)
        label = jnp.sum(jnp.where(own, logs, 0), axis=-1)
        binary = jnp.stack([label, jnp.where(some[:, 0], total, -jnp.inf)], axis=-1)
        # Of logits, and not of `logs` less `total`: both are large where the label is sure. The
        # label's place holds a constant, which both distributions have and no sum reads.
        scaled = jnp.where(some, wide(logits)[0] / temperature, 0)
        among = jax.nn.log_softmax(jnp.where(own, -jnp.inf, scaled), axis=-1)
        return binary, jnp.where(own, 0, jnp.where(some, among, -jnp.inf))

    ours, others = parts(student)
    theirs, known = parts(jax.lax.stop_gradient(teacher))
    label = _divergence(theirs, ours)
    among = jnp.sum(jnp.where(own, 0, _divergences(known, others)), axis=-1)
    if _is_hot(temperature):
        chances = jnp.exp(_targets(teacher, temperature))
        apart, near = _apart(student, teacher, chances, temperature)
        mean, spread = _moments(jnp.where(own, 0, jnp.exp(known)), apart)
        # The logarithms by which the student's two chances stand apart from the teacher's.
        both = jnp.stack([jnp.sum(jnp.where(own, apart, 0), axis=-1), mean + spread], axis=-1)
        label = jnp.where(near, _moments(jnp.exp(theirs), both)[1], label)
        among = jnp.where(near, spread, among)
    return temperature**2 * (target_weight * label + others_weight * among)


def dist_loss(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"] | None = None,
    *,
    inter: float | Float[Array, ""] = 1.0,
    intra: float | Float[Array, ""] = 1.0,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, " b"]:
    """Computes how far probabilities of student and teacher are from being correlated.

    τ² times β (1 - ρ(q_i, p_i)) and γ times the mean of 1 - ρ(q_·c, p_·c) over classes c, of
    q = softmax(student / τ), p = softmax(teacher / τ) and Pearson's correlation ρ. The first
    compares classes of an example. The second compares examples of a class, and belongs to the
    batch: of standardised values a and b, 1 - ρ is half the sum of (a - b)², of which an example
    has its own summands, b times, so that the mean over the batch is the paper's loss.

    Args:
      student: The student's logits.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.
      inter: Weight β of the correlation over classes, at least 0.
      intra: Weight γ of the correlation over examples, at least 0.
      temperature: Temperature τ of both, above 0.

    Returns:
      The loss of each example, in float32 or wider; 0 where the student's probabilities are an
      increasing linear function of the teacher's. What is constant counts as no direction: 1/2
      where the other one varies.

    Raises:
      ValueError: If shapes do not fit, a weight is below 0 or infinite, or `temperature` is not a
        finite number above 0.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536,
    Section 3; the factor τ² is that of its public code.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"))
    check_between(0, inter=inter, intra=intra)
    check_finite(inter=inter, intra=intra)
    del labels

    def apart(axis: int) -> Array:
        ours, theirs = (_standardized(jnp.exp(x), axis) for x in (logs, known))
        return jnp.sum((ours - theirs) ** 2, axis=1) / 2

    logs, known = _logs(student, temperature), _targets(teacher, temperature)
    examples, classes = student.shape
    over_classes, over_examples = apart(1), examples / classes * apart(0)
    return temperature**2 * (inter * over_classes + intra * over_examples)


def target_enhanced_loss(
    student: Float[Array, "*e b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    gamma: float | Sequence[float] | Float[Array, ""] | Float[Array, "*e"] = 1.0,
    temperature: float | Float[Array, ""] = 1.0,
    form: str = "code",
    normalized: bool = False,
) -> Float[Array, "*e b"]:
    """Computes the cross-entropy with a teacher whose share of the label is enhanced.

    -Σ_c w_c log q_c of q = softmax(student / τ), with weights w of p = softmax(teacher / τ):

        form     label y            another class c
        "code"   (1 + p_y)^γ - 1    p_c^γ
        "paper"  (1 + p_y)^γ        p_c

    The least loss is at q = w / Σw, in which the label has the more, the larger γ and the surer the
    teacher is of it. At γ = 1 the first form is `soft_cross_entropy` but for its factor τ²; the
    second counts the label itself once more. Σw is not 1, so that the size of the loss moves with
    γ unless it is `normalized`.

    Args:
      student: The student's logits, or logits [e, b, k] of several outputs, such as exits and last
        the student's own.
      teacher: The teacher's logits; no gradient flows into them.
      labels: Classes in [0, k); of soft labels, as smoothing and mixing make them, the arg max.
      gamma: Exponent γ of the enhancement, above 0; one for all outputs, or one for each.
      temperature: Temperature τ of both, above 0.
      form: "code", as the authors' code has it, or "paper", the exponent on the label alone.
      normalized: Whether weights are divided by their sum; ours.

    Returns:
      The loss of each example and output, in float32 or wider.

    Raises:
      ValueError: If shapes do not fit, the form is unknown, there are as many γ neither as one nor
        as outputs, `temperature` is not a finite number above 0 or, outside `jit`, γ is not above 0
        or a label is out of range.

    Source: Hao et al., One-for-All, arXiv:2310.19444, adaptive target information enhancement, and
    `ofa_loss` of the public code (Hao840/OFAKD at f7bb896).
    """
    check_shapes(student=(student, "... n k"), teacher=(teacher, "n k"), labels=(labels, "n"))
    check_indices("labels", labels, student.shape[-1])
    if form not in ("code", "paper"):
        raise ValueError(f"unknown form {form!r}: expected 'code' or 'paper'")
    if not isinstance(gamma, jax.core.Tracer) and not np.all(np.asarray(gamma) > 0):
        raise ValueError(f"gamma is {gamma}, expected a number above 0")
    exponent = jnp.asarray(gamma)
    if exponent.shape not in ((), student.shape[:-2]):
        raise ValueError(
            f"gamma has shape {exponent.shape}, expected one number or {student.shape[:-2]}, one "
            "for each output of the student"
        )
    if exponent.ndim:
        exponent = exponent[..., None, None]
    own = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)
    known = _targets(teacher, temperature)
    raised = exponent * jnp.log1p(jnp.exp(known))
    if form == "code":
        weights = jnp.where(own, jnp.expm1(raised), jnp.exp(exponent * known))
    else:
        weights = jnp.where(own, jnp.exp(raised), jnp.exp(known))
    if normalized:
        weights /= jnp.sum(weights, axis=-1, keepdims=True)
    return -sum_of_products(weights, _logs(student, temperature))


def _logs(logits: Array, temperature: float | Array) -> Array:
    check_above_0(temperature=temperature)
    check_finite(temperature=temperature)
    (logits,) = wide(logits)
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _targets(teacher: Array, temperature: float | Array) -> Array:
    return _logs(jax.lax.stop_gradient(teacher), temperature)


def _is_hot(temperature: float | Array) -> bool:
    """Whether a known temperature is so high that divergences are lost in rounding.

    A traced one is not known, and what it would take to be sure is not paid for at each step.
    """
    return not isinstance(temperature, jax.core.Tracer) and bool(temperature > _HOT)


def _apart(
    student: Array, teacher: Array, chances: Array, temperature: float | Array
) -> tuple[Array, Array]:
    """Differences of logits at a high temperature from their mean, and which rows have small ones.

    Other rows are zeros: those with a difference that is not small or not finite, and all rows at
    lower temperatures.
    """
    student, teacher = wide(student, jax.lax.stop_gradient(teacher))
    apart = student - teacher
    masked = (student == -jnp.inf) & (teacher == -jnp.inf)
    known = jnp.isfinite(apart)
    apart = jnp.where(known, apart, 0) / temperature
    apart -= jnp.sum(chances * apart, axis=-1, keepdims=True)
    near = jnp.all(masked | (known & (jnp.abs(apart) < 0.5)), axis=-1) & (temperature > _HOT)
    return jnp.where(near[:, None], apart, 0), near


def _moments(chances: Array, apart: Array) -> tuple[Array, Array]:
    """The mean m of small numbers x, and log Σ p e^(x - m), without cancellation."""
    mean = jnp.sum(chances * apart, axis=-1)
    x = apart - mean[:, None]
    series = jnp.ones_like(x)
    for i in range(18, 2, -1):
        series = 1 + x / i * series
    return mean, jnp.log1p(jnp.sum(chances * x**2 / 2 * series, axis=-1))  # of e^x - 1 - x


def _standardized(x: Array, axis: int) -> Array:
    """Differences from the mean along an axis, of unit length; zeros where all are equal."""
    # The rounded mean of equal values may lie beside them: differences from the first do not.
    x = x - jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    x = jnp.moveaxis(x - jnp.mean(x, axis=axis, keepdims=True), axis, -1)
    return jnp.moveaxis(normalize(x), -1, axis)


def _divergence(targets: Array, logs: Array) -> Array:
    """KL of log-probabilities, where a chance that has run down to 0 adds nothing."""
    return jnp.sum(_divergences(targets, logs), axis=-1)


def _divergences(targets: Array, logs: Array) -> Array:
    """The summands of `_divergence`, 0 where a chance is 0 or too small for its number."""
    chances = jnp.exp(targets)
    some = chances > 0
    return chances * (jnp.where(some, targets, 0) - jnp.where(some, logs, 0))
