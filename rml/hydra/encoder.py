"""An image encoder whose projections pass through the gates of a pair of classes."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from rml.hydra.analysis import all_pairs
from rml.hydra.feature_filter import FeatureFilter


class LearnedOptions(nn.Module):
    """Options of `hydra_loss` that are learned, as in the authors' code.

    Attributes:
      temperature: initial temperature, the logarithm of whose inverse is learned; None where it is
        not.
      ungated: initial weight of the cosine in the whole space, their α; None likewise.
    """

    temperature: float | None = None
    ungated: float | None = None

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The learned options by name."""
        options = {}
        if self.temperature is not None:
            start = nn.initializers.constant(-math.log(self.temperature))
            options["temperature"] = jnp.exp(-self.param("log_scale", start, ()))
        if self.ungated is not None:
            options["ungated"] = self.param("ungated", nn.initializers.constant(self.ungated), ())
        return options


class GatedEncoder(nn.Module):
    """An encoder with its projection head and the feature filter of pairs of classes.

    Attributes:
      encoder: module from images to features.
      head: module from features to projections.
      filter: gates of a pair of classes, as many as projections have dimensions.
      norm: module that normalises projections; None leaves them as the head gives them.
      probe: classifier of the features that sends no gradient into them; None for no such.
      options: options of the loss that are learned.

    Source: arXiv:2410.18200. The gates are kept apart from the projections, because each pair
    compares all projections of a batch in its own subspace: see `hydra_loss`.
    """

    encoder: Any
    head: Any
    filter: FeatureFilter
    norm: Any = None
    probe: Any = None
    options: LearnedOptions = LearnedOptions()

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p"]:
        """Projections of images, before any gate."""
        return self.outputs(images, train=train)[0]

    def outputs(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b p"], Float[Array, "b k"] | None]:
        """Computes projections of images, and the probe's logits of classes if there is one."""
        if self.is_initializing():
            self.gates(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
            self.options()
        features = self.encoder(images, train=train)
        projections = self.head(features, train=train)
        if self.norm is not None:
            projections = self.norm(projections)
        return projections, None if self.probe is None else self.probe(lax.stop_gradient(features))

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Computes features of images, which a downstream task takes."""
        return self.encoder(images, train=False)

    def gates(
        self,
        first: Int[Array, " n"],
        second: Int[Array, " n"],
        key: Key[Array, ""] | None = None,
        *,
        train: bool = False,
        openness: bool = False,
    ) -> Float[Array, "n p"]:
        """Gates of pairs of classes, random ones only with a key; see `FeatureFilter`."""
        return self.filter(first, second, key, train=train, openness=openness)

    def loss_options(self) -> dict[str, Array]:
        """Returns the options of the loss that are learned, by name."""
        return self.options()

    def pair_gates(self) -> Float[Array, "c c p"]:
        """Gates of every pair of classes, for a few hundred classes at most."""
        classes = self.filter.classes
        return self.gates(*all_pairs(classes)).reshape(classes, classes, -1)
