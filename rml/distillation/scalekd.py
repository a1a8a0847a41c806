"""ScaleKD whole: a student whose last two stages follow a ViT in the space of its last tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.distillation.cross_attention_projector import CrossAttentionProjector, LinearProjector
from rml.distillation.dual_view import dual_view
from rml.losses import soft_cross_entropy
from rml.models.heads import Classifier
from rml.models.layers import unknown
from rml.ops.shapes import check_indices, check_shapes
from rml.ops.similarity import wide

PROJECTORS = {"attention": CrossAttentionProjector, "linear": LinearProjector}
"""Projectors by name."""
VIEWS = 2
"""The direct view and the alternative one, each with projectors of its own."""


class Projected(NamedTuple):
    """What a student makes of images, its last two stages in the space of its teacher.

    Attributes:
      logits: Logits [b, k] of the classes.
      features: Features [b, d], which the classifier reads.
      third: Tokens [2, b, t, d] of the last stage but one after the teacher's last blocks, of both
        views.
      fourth: Tokens [2, b, t, d] of the last stage.
    """

    logits: jax.Array
    features: jax.Array
    third: jax.Array
    fourth: jax.Array


class ScaleNetwork(nn.Module):
    """A student of any architecture that is taught in the space of a ViT's tokens.

    The last stage but one is projected and then passes the teacher's own last blocks, `path`. What
    comes out is compared with the teacher's last tokens, and is the query of the last stage's
    projector. Grids may differ: projectors attend from each place of the teacher's grid to all of
    the student's map. Students of tokens, such as Mixers, have a square grid of them.

    Projectors are left away after the training: `rml.distillation.Network(encoder, classes)` takes
    what `network_variables` leaves, and has the same logits.

        student = ScaleNetwork(ConvNet(widths=(8, 16, 32), ...), 10, grid=(4, 4), width=48, heads=4)
        path = lambda tokens: through_teacher(vit, variables, tokens, start=vit.depth - 1)
        found = student.apply(own, images, path=path, train=True, mutable=["batch_stats"])[0]
        loss = scalekd_loss(found, teacher_logits, teacher_tokens, labels).mean()

    Attributes:
      encoder: Module called `encoder(images, train=..., stages=True)` that gives `Stages`.
      classes: Number of classes.
      grid: Rows and columns of the teacher's grid.
      width: Width of the teacher's tokens.
      heads: Number of attention heads of a projector.
      scale: Factor of the logits of a projector's attention.
      projector: "attention", or "linear" for the plain alternative.
      queries: "path" where the last stage's queries are made of what leaves the path, "learned"
        where they are a table.
      stages: Numbers of the two stages among the encoder's.

    Source: Fan et al., ScaleKD: Strong Vision Transformers Could Be Excellent Teachers,
    arXiv:2411.06786, and its public code (deep-optimization/ScaleKD at 478a7db).
    """

    encoder: nn.Module
    classes: int
    grid: tuple[int, int]
    width: int
    heads: int = 4
    scale: float | jax.Array = 5.0
    projector: str = "attention"
    queries: str = "path"
    stages: tuple[int, int] = (-2, -1)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b ..."],
        *,
        path: Callable[[Array], Array] = lambda tokens: tokens,
        train: bool = False,
    ) -> Projected:
        """Computes logits, features and both projected stages.

        Args:
          images: Images.
          path: Last blocks of the teacher, `path(tokens [b, t, d]) -> tokens`, see
            `through_teacher`; no blocks if not given.
          train: Whether BatchNorm uses (and updates) the statistics of this batch.

        Raises:
          ValueError: An option is unknown, the encoder has no such stage, or one is neither a map
            nor a square of tokens.
        """
        if self.queries not in ("path", "learned"):
            raise unknown("queries", self.queries, ("path", "learned"))
        found = self.encoder(images, train=train, stages=True)
        logits = Classifier(self.classes, name="classifier")(found.features, train=train)
        count = len(found.stages)
        if not all(-count <= i < count for i in self.stages):
            raise ValueError(
                f"stages is {tuple(self.stages)}, expected two of the encoder's, which has {count}"
            )
        third, fourth = (found.stages[i] for i in self.stages)
        third = jax.vmap(path)(self._project("third", third, None, train))
        query = third if self.queries == "path" else None
        return Projected(
            logits, found.features, third, self._project("fourth", fourth, query, train)
        )

    def _project(self, name: str, x: Array, query: Array | None, train: bool) -> Array:
        """Projects a stage for both views, by projectors that are one module mapped over views."""
        if self.projector not in PROJECTORS:
            raise unknown("projector", self.projector, PROJECTORS)
        options: dict[str, Any] = {"grid": self.grid, "width": self.width}
        if self.projector == "attention":
            options |= {"heads": self.heads, "scale": self.scale}
        projector = PROJECTORS[self.projector](name=name, **options)
        both = nn.vmap(
            lambda own, x, query: own(x, query, train=train),
            in_axes=(None, None if query is None else 0),
            variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
            split_rngs={"params": True},
            axis_size=VIEWS,
            metadata_params={nn.PARTITION_NAME: None},
        )
        return jnp.asarray(both(projector, x, query))


def scalekd_loss(
    found: Projected,
    teacher_logits: Float[Array, "b k"],
    teacher_tokens: Float[Array, "b t d"],
    labels: Int[Array, " b"],
    *,
    direct: float | Float[Array, ""] = 3.92,
    alternative: float | Float[Array, ""] = 2.94,
    share: float | Float[Array, ""] = 0.5,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, " b"]:
    """Computes (1 - a) CE(y) + a τ² CE(p^t, p^s), and `dual_view` of both stages.

    Args:
      found: What the student makes of the images.
      teacher_logits: Logits of the teacher.
      teacher_tokens: The teacher's last tokens after its norm, without a class token; both stages
        are compared with them.
      labels: Classes.
      direct: Weight of the direct view.
      alternative: Weight of the view without the mean.
      share: Share a of the teacher's classes beside the label.
      temperature: Temperature τ of these classes, above 0.

    Returns:
      The loss of each example.

    Raises:
      ValueError: If shapes do not fit, or, outside `jit`, a label is out of range.

    Source: Fan et al., ScaleKD, arXiv:2411.06786; weights are those of its public code, for a mean
    over positions.
    """
    check_shapes(
        logits=(found.logits, "n k"), teacher_logits=(teacher_logits, "n k"), labels=(labels, "n"),
        third=(found.third, "2 n t d"), fourth=(found.fourth, "2 n t d"),
        teacher_tokens=(teacher_tokens, "n t d"),
    )  # fmt: skip
    check_indices("labels", labels, teacher_logits.shape[1])
    label = optax.softmax_cross_entropy_with_integer_labels(wide(found.logits)[0], labels)
    soft = soft_cross_entropy(found.logits, teacher_logits, temperature=temperature)
    third, fourth = (
        dual_view(own, teacher_tokens, direct=direct, alternative=alternative)
        for own in (found.third, found.fourth)
    )
    return (1 - share) * label + share * soft + third + fourth
