"""SimpleShot: the nearest class mean."""

from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar, tempered_softmax
from rml.fewshot.checks import require_episode
from rml.fewshot.preprocess import transform_episode
from rml.ops.class_means import class_means
from rml.ops.pairwise import squared_euclidean
from rml.ops.precision import full_precision
from rml.ops.similarity import normalize


@full_precision
def simple_shot(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    kind: str = "UN",
    center: Float[Array, " d"] | None = None,
    unit_prototypes: bool = False,
    temperature: Scalar = 1.0,
) -> Float[Array, "q c"]:
    """Classifies each query by its Euclidean distance to the class means of the support.

    Args:
      support: Support features.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      kind: Feature transform, "UN", "L2N" or "CL2N".
      center: Base classes' mean, for CL2N; the episode's own by default, which makes the
        method transductive.
      unit_prototypes: Scale the class means to unit length too. The paper's code takes means of
        unit rows as they are, which matters from 2 shots on; easyfsl takes cosines to the means,
        which with "L2N" or "CL2N" order classes as this option does.
      temperature: Divides the squared distances; the predicted class does not depend on it.

    Returns:
      Probabilities, the softmax of minus the squared distances.

    Raises:
      ValueError: If the arrays are not an episode, `kind` is unknown, or `temperature` is not
        above 0.

    Source: Wang et al., SimpleShot, arXiv:1911.04623.
    """
    require_episode(support, support_labels, query, num_classes)
    support, query = transform_episode(support, query, kind=kind, center=center)
    prototypes = class_means(support, support_labels, num_classes=num_classes)
    if unit_prototypes:
        prototypes = normalize(prototypes)
    return tempered_softmax(-squared_euclidean(query, prototypes), temperature, axis=1)
