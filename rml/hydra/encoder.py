"""An image encoder whose projections pass through the gates of a pair of classes."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rml.hydra.analysis import all_pairs
from rml.hydra.feature_filter import FeatureFilter


class GatedEncoder(nn.Module):
    """An encoder with its projection head and the feature filter of pairs of classes.

    Attributes:
      encoder: module from images to features.
      head: module from features to projections.
      filter: gates of a pair of classes, as many as projections have dimensions.

    Source: arXiv:2410.18200. The gates are kept apart from the projections, because each pair
    compares all projections of a batch in its own subspace: see `hydra_loss`.
    """

    encoder: Any
    head: Any
    filter: FeatureFilter

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p"]:
        """Projections of images, before any gate."""
        if self.is_initializing():
            self.gates(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
        return self.head(self.encoder(images, train=train), train=train)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Features of images, what a downstream task takes."""
        return self.encoder(images, train=False)

    def gates(
        self, first: Int[Array, " n"], second: Int[Array, " n"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "n p"]:
        """Gates of pairs of classes, random ones only with a key."""
        return self.filter(first, second, key)

    def pair_gates(self) -> Float[Array, "c c p"]:
        """Gates of every pair of classes, for a few hundred classes at most."""
        classes = self.filter.classes
        return self.gates(*all_pairs(classes)).reshape(classes, classes, -1)
