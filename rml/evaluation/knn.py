"""Weighted nearest-neighbour classification of frozen features."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rml.evaluation.accuracy import accuracy
from rml.evaluation.checks import require_finite, require_labels, require_same_width
from rml.evaluation.devices import over_devices
from rml.ops.topk import topk


def knn_predict(
    train_features: Float[Array, "n d"],
    train_labels: Int[Array, " n"],
    test_features: Float[Array, "m d"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    weighted: bool = True,
    block: int = 1024,
    mesh: Mesh | None = None,
) -> Float[Array, "m c"]:
    """Computes class scores by the votes of the `k` training rows with the highest cosine.

    A neighbour of cosine s votes with weight exp(s / temperature), or 1 if not `weighted`. Among
    equal cosines the lower training row is the neighbour; among equal scores the lower class wins
    the argmax. A zero row has cosine 0 with every row. Memory is bounded by `block`.

    Args:
      train_features: Features voted by; any scale, they are normalised here.
      train_labels: Their classes.
      test_features: Features to classify.
      num_classes: Number of classes c.
      k: Neighbours that vote.
      temperature: Temperature τ of the weights.
      weighted: Weight votes by similarity rather than count them.
      block: Test rows, and training rows, handled at a time.
      mesh: Devices, of any number of processes, among which test rows are shared out.

    Returns:
      Shares of the vote, summing to 1 over classes.

    Raises:
      ValueError: If the shapes disagree, a feature is not finite, a label is out of range, `k` is
        not between 1 and n, or the temperature is not positive.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
      Discrimination", section 3.4.
    """
    require_same_width("train_features", train_features, "test_features", test_features)
    require_labels(
        "train_labels", train_labels, rows=train_features.shape[0], num_classes=num_classes
    )
    require_finite("train_features", train_features)
    require_finite("test_features", test_features)
    if not 1 <= k <= train_features.shape[0]:
        raise ValueError(
            f"k must be between 1 and the {train_features.shape[0]} training rows, got {k}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    options = dict(num_classes=num_classes, k=k, weighted=weighted, block=block)
    voters = train_features, train_labels, temperature
    if mesh is None or mesh.size == 1:
        return _vote(*voters, test_features, **options)
    return over_devices(_vote, voters, test_features, mesh, **options)


@partial(jax.jit, static_argnames=("num_classes", "k", "weighted", "block"))
def _vote(
    train_features: Array,
    train_labels: Array,
    temperature: float | Array,
    test_features: Array,
    *,
    num_classes: int,
    k: int,
    weighted: bool,
    block: int,
) -> Array:
    cosine, index = topk(test_features, train_features, k=k, metric="cosine", block=block)
    # Shares do not change with the shift of a softmax, and no temperature overflows.
    weights = jax.nn.softmax(cosine / temperature if weighted else jnp.zeros_like(cosine), axis=1)
    rows = jnp.arange(test_features.shape[0])[:, None]
    scores = jnp.zeros((test_features.shape[0], num_classes), weights.dtype)
    return scores.at[rows, train_labels[index]].add(weights)


def knn_accuracy(
    train_features: Float[Array, "n d"],
    train_labels: Int[Array, " n"],
    test_features: Float[Array, "m d"],
    test_labels: Int[Array, " m"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    weighted: bool = True,
    block: int = 1024,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Computes the share of test rows whose class wins the vote of `knn_predict`.

    Args:
      train_features: Features voted by.
      train_labels: Their classes.
      test_features: Features to classify.
      test_labels: Their true classes.
      num_classes: Number of classes.
      k: Neighbours that vote.
      temperature: Temperature τ of the weights.
      weighted: Weight votes by similarity rather than count them.
      block: Test rows, and training rows, handled at a time.
      mesh: Devices, of any number of processes, among which test rows are shared out.

    Returns:
      A number between 0 and 1.

    Raises:
      ValueError: As `knn_predict`, and if a test label is out of range.
    """
    require_labels("test_labels", test_labels, rows=test_features.shape[0], num_classes=num_classes)
    scores = knn_predict(
        train_features,
        train_labels,
        test_features,
        num_classes=num_classes,
        k=k,
        temperature=temperature,
        weighted=weighted,
        block=block,
        mesh=mesh,
    )
    return accuracy(scores, test_labels)
