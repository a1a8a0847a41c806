"""An encoder of images and one of texts that meet in one space."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TwoTowers(nn.Module):
    """Encoders of images and texts, with the learned temperature and bias of their logits.

    Attributes:
      image: module from images to vectors, with a method `features`.
      text: module from tokens and mask to vectors of the same width.
      log_scale: initial logarithm of the inverse temperature.
      bias: initial bias of the logits, which only the sigmoid loss uses.

    Source: Radford et al. 2021, CLIP; Zhai et al. 2023, SigLIP, section 3.2 for the bias.
    """

    image: Any
    text: Any
    log_scale: float | Float[Array, ""]
    bias: float | Float[Array, ""]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        tokens: Int[Array, "n t"],
        mask: Bool[Array, "n t"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "b d"], Float[Array, "n d"], Float[Array, ""], Float[Array, ""]]:
        """Vectors of images and of texts, not normalised, the scale's logarithm and the bias."""
        log_scale = self.param("log_scale", nn.initializers.constant(self.log_scale), ())
        bias = self.param("bias", nn.initializers.constant(self.bias), ())
        vectors = self.image(images, train=train), self.text(tokens, mask, train=train)
        return *vectors, jnp.asarray(log_scale), jnp.asarray(bias)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        """Computes features of images, which a downstream task takes."""
        return self.image.features(images)

    def embed_images(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Computes vectors of images."""
        return self.image(images, train=False)

    def embed_texts(
        self, tokens: Int[Array, "n t"], mask: Bool[Array, "n t"]
    ) -> Float[Array, "n d"]:
        """Computes vectors of texts."""
        return self.text(tokens, mask, train=False)
