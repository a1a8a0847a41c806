"""Networks as distillation sees them: logits, and the features that they are made of."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rml.models.exits import Exits
from rml.models.heads import Classifier
from rml.models.layers import Stages, dense


class Outputs(NamedTuple):
    """What a network makes of images.

    Attributes:
      logits: Logits [b, k] of the classes.
      features: Features [b, d], which the classifier reads.
      exits: Logits [e, b, k] of its exits, where it has such.
      stages: Outputs of its encoder's stages, first to last, where they were asked for.
      tokens: Last tokens [b, t, d] of a ViT after its norm, where it teaches in their space.
    """

    logits: jax.Array
    features: jax.Array
    exits: jax.Array | None = None
    stages: tuple[jax.Array, ...] | None = None
    tokens: jax.Array | None = None


class Network(nn.Module):
    """An encoder and its linear classifier: a teacher or a student.

    Attributes:
      encoder: Module called `encoder(images, train=...)` that gives features [b, d].
      classes: Number of classes.
    """

    encoder: nn.Module
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "b ..."], *, train: bool = False, stages: bool = False
    ) -> Outputs:
        """Computes logits and features of images, with `stages` the encoder's stages too."""
        found = (
            self.encoder(images, train=train, stages=True)
            if stages
            else Stages(self.encoder(images, train=train), ())
        )
        logits = Classifier(self.classes, name="classifier")(found.features, train=train)
        return Outputs(logits, found.features, stages=found.stages if stages else None)


class ExitNetwork(nn.Module):
    """A student with exits: logits of its stages, each of which is taught as its own logits are.

    Exits are left away after the training: `Network(encoder, classes)` takes what
    `network_variables` leaves, and has the same logits.

    Attributes:
      encoder: Module called `encoder(images, train=..., stages=True)` that gives `Stages`.
      classes: Number of classes.
      exits: Its exits.

    Source: Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation, arXiv:2310.19444.
    """

    encoder: nn.Module
    classes: int
    exits: Exits

    @nn.compact
    def __call__(self, images: Float[Array, "b ..."], *, train: bool = False) -> Outputs:
        """Computes logits, features and the logits of all exits."""
        found = self.encoder(images, train=train, stages=True)
        logits = Classifier(self.classes, name="classifier")(found.features, train=train)
        return Outputs(logits, found.features, self.exits(found.stages, train=train))


def network_variables(variables: PyTree) -> dict[str, PyTree]:
    """Selects the variables of a student that `Network` takes, without what it was trained with."""
    kept = {
        name: {key: leaf for key, leaf in part.items() if key in ("encoder", "classifier")}
        for name, part in variables.items()
    }
    return {name: part for name, part in kept.items() if part}


class Maps(nn.Module):
    """Linear maps that bring features to one width; they are left away after the training.

    Attributes:
      kind: "none", "student" or "both", see `rml.distillation.Method`.
      width: Width of both where both are mapped.
    """

    kind: str = "none"
    width: int = 128

    @nn.compact
    def __call__(
        self, student: Float[Array, "b ... s"], teacher: Float[Array, "b ... t"]
    ) -> tuple[Float[Array, "b ... d"], Float[Array, "b ... e"]]:
        """Maps the features of a student and those of its teacher, or all places of their maps."""
        axes = (None, None)
        if self.kind == "student":
            student = dense(teacher.shape[-1], axes, name="student")(student)
        elif self.kind == "both":
            student = dense(self.width, axes, name="student")(student)
            teacher = dense(self.width, axes, name="teacher")(teacher)
        return student, jnp.asarray(teacher)
