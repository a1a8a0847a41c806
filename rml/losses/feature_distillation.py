"""Distillation by features: rows of a student follow a teacher's, their relations, or tell them.

All take `(student, teacher, labels)` and give a value of each example, as those on logits do
(`rml.losses.distillation`). `fitnet_loss` and `crd_loss` need rows of one width; a linear map in
front of them, which is trained with the student, gives it (`rml.distillation.distill`).
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.ops.pairwise import cosine_similarity, euclidean
from rml.ops.shapes import check_above_0, check_count, check_finite, check_shapes
from rml.ops.similarity import normalize, wide


def fitnet_loss(
    student: Float[Array, "b ..."],
    teacher: Float[Array, "b ..."],
    labels: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Computes the mean square of the difference between features, or maps of features.

    The paper has half the sum in its place; the mean does not grow with the map.

    Args:
      student: Features of the student, after the map to the teacher's width.
      teacher: Features of the teacher; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.

    Returns:
      The loss of each example, in float32 or wider; 0 where the features are equal.

    Raises:
      ValueError: The shapes differ, or an example has no feature.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, eq. 3.
    """
    del labels
    if student.shape != teacher.shape:
        raise ValueError(
            f"features of the student have shape {student.shape}, those of the teacher "
            f"{teacher.shape}, expected one shape"
        )
    if not math.prod(student.shape[1:]):
        raise ValueError(
            f"student and teacher have shape {student.shape}, expected at least one feature"
        )
    student, teacher = wide(student, jax.lax.stop_gradient(teacher))
    return jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))


def rkd_distance(
    student: Float[Array, "b s"],
    teacher: Float[Array, "b t"],
    labels: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Computes how far distances to the other rows differ, each network's divided by their mean.

    Of row i the mean over j ≠ i of Huber(d(s_i, s_j) / μ_s - d(t_i, t_j) / μ_t), where μ is the
    mean distance between two rows of the batch. Huber's function is quadratic up to 1.

    Args:
      student: Features of the student.
      teacher: Features of the teacher, of any width; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.

    Returns:
      The loss of each example, in float32 or wider; 0 where there is one row, or where one
      network's rows are those of the other turned, moved or scaled.

    Raises:
      ValueError: If shapes do not fit.

    Source: Park et al., Relational Knowledge Distillation, arXiv:1904.05068, eq. 5 to 8.
    """
    check_shapes(student=(student, "n d"), teacher=(teacher, "n k"))
    del labels

    def relations(rows: Array) -> Array:
        distances = jnp.where(others, euclidean(rows, rows), 0)
        mean = jnp.sum(distances) / pairs
        return distances / jnp.where(mean > 0, mean, 1)

    others = ~jnp.eye(student.shape[0], dtype=bool)
    pairs = max(student.shape[0] * (student.shape[0] - 1), 1)
    theirs = relations(jax.lax.stop_gradient(teacher))
    each = optax.huber_loss(relations(student), theirs)
    return jnp.sum(jnp.where(others, each, 0), axis=1) / max(student.shape[0] - 1, 1)


@jax.jit  # a loop outside of a program would be compiled at every call
def rkd_angle(
    student: Float[Array, "b s"],
    teacher: Float[Array, "b t"],
    labels: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Computes how far angles at each row between two others differ.

    Of row j the mean over two others i ≠ k of Huber(cos ∠s_i s_j s_k - cos ∠t_i t_j t_k). The
    memory is quadratic in the batch, the work cubic: one vertex is computed after the other.

    Args:
      student: Features of the student.
      teacher: Features of the teacher, of any width; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.

    Returns:
      The loss of each example, in float32 or wider; 0 where there are fewer than three rows, or
      where one network's rows are those of the other turned, moved or scaled.

    Raises:
      ValueError: If shapes do not fit.

    Source: Park et al., arXiv:1904.05068, eq. 9 to 11.
    """
    check_shapes(student=(student, "n d"), teacher=(teacher, "n k"))
    del labels
    size = student.shape[0]
    student, teacher = wide(student, jax.lax.stop_gradient(teacher))
    index = jnp.arange(size)

    def cosines(rows: Array, vertex: Array) -> Array:
        sides = normalize(rows - rows[vertex])
        return jnp.matmul(sides, sides.T, precision=jax.lax.Precision.HIGHEST)

    @jax.checkpoint
    def at(vertex: Array) -> Array:
        here = index != vertex
        counted = here[:, None] & here[None, :] & (index[:, None] != index[None, :])
        each = optax.huber_loss(cosines(student, vertex), cosines(teacher, vertex))
        return jnp.sum(jnp.where(counted, each, 0)) / max((size - 1) * (size - 2), 1)

    return jax.lax.map(at, index)


def correlation_congruence(
    student: Float[Array, "b s"],
    teacher: Float[Array, "b t"],
    labels: Int[Array, " b"] | None = None,
    *,
    gamma: float | Float[Array, ""] = 0.4,
    order: int = 2,
) -> Float[Array, " b"]:
    """Computes how far the correlations of rows differ, by a series of the Gaussian kernel.

    Of row i the mean over all j of (k(s_i, s_j) - k(t_i, t_j))², where k(x, y) is the series
    e^(-2γ) Σ_p (2γ x·y)^p / p! of unit rows up to p = P, which goes to e^(-γ‖x - y‖²).

    Args:
      student: Features of the student.
      teacher: Features of the teacher, of any width; no gradient flows into them.
      labels: Accepted for uniformity; they are not read.
      gamma: Inverse width γ of the kernel, above 0.
      order: Order P of the series, at least 1.

    Returns:
      The loss of each example, in float32 or wider; 0 where one network's rows are those of the
      other turned or scaled.

    Raises:
      ValueError: If shapes do not fit, `gamma` is not a finite number above 0, or `order` no
        whole one of at least 1.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, arXiv:1904.01802,
    Section 3; γ and P are those that are usual with unit rows.
    """
    check_shapes(student=(student, "n d"), teacher=(teacher, "n k"))
    check_above_0(gamma=gamma)
    check_finite(gamma=gamma)
    check_count(1, order=order)
    del labels

    def kernel(rows: Array) -> Array:
        x = 2 * gamma * cosine_similarity(rows, rows)
        terms = [x**p / math.factorial(p) for p in range(order + 1)]
        return jnp.exp(-2 * gamma) * sum(terms)

    apart = kernel(student) - kernel(jax.lax.stop_gradient(teacher))
    return jnp.mean(apart**2, axis=1)


def crd_loss(
    student: Float[Array, "b d"],
    teacher: Float[Array, "b d"],
    labels: Int[Array, " b"] | None = None,
    *,
    temperature: float | Float[Array, ""] = 0.07,
    size: float | Float[Array, ""] = 50_000.0,
) -> Float[Array, " b"]:
    """Computes the contrastive loss that tells whether two rows are of one example.

    With h(s, t) = e^(cos(s, t)/τ) / (e^(cos(s, t)/τ) + N/M) the loss of row i is
    -log h(s_i, t_i) - Σ_j log(1 - h(s_i, t_j)), with the student's row in the middle, and the same
    with the teacher's, Σ_j log(1 - h(s_j, t_i)). The paper draws N negatives from a memory; here
    they are the other rows of the batch, those of other labels where labels are given.

    Args:
      student: The student's rows, after the map to the width that both have; not normalised.
      teacher: The teacher's rows, likewise. Gradients flow into them, since its map is trained; a
        frozen teacher stops them itself.
      labels: Classes; rows of one class are no negatives of each other.
      temperature: Temperature τ, above 0.
      size: Number M of examples that are trained on.

    Returns:
      The loss of each example, in float32 or wider.

    Raises:
      ValueError: If shapes do not fit, or `temperature` or `size` is not above 0.

    Source: Tian et al., Contrastive Representation Distillation, arXiv:1910.10699, eq. 10 and 19.
    """
    check_shapes(student=(student, "n d"), teacher=(teacher, "n d"), labels=(labels, "n"))
    check_above_0(temperature=temperature, size=size)
    cosines = cosine_similarity(student, teacher) / temperature
    same = jnp.eye(student.shape[0], dtype=bool)
    negative = ~same if labels is None else labels[:, None] != labels[None, :]
    count = jnp.maximum(jnp.sum(negative, axis=1), 1)
    offset = jnp.log(count / size)

    def around(middle: Array) -> Array:
        """The loss of rows [b, b] whose middle is that of the first axis."""
        odds = middle - offset[:, None]
        wrong = jnp.sum(jnp.where(negative, jax.nn.log_sigmoid(-odds), 0), axis=1)
        return -jax.nn.log_sigmoid(jnp.diagonal(odds)) - wrong

    return around(cosines) + around(cosines.T)
