"""The encoder of a bed: a vision transformer that is trained here, or a pretrained one of texts."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml import models
from rml.data import augment
from rml.models import pretrained
from rml.models.text_encoder import TextEncoder

PADDING = 0
"""The token of places without text."""


class TextFeatures(nn.Module):
    """An encoder of texts that are one array of tokens.

    Attributes:
      encoder: The encoder.
      width: Number of its features.
    """

    encoder: TextEncoder
    width: int

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """Features of texts, whose padding is 0."""
        return self.encoder(tokens, tokens != PADDING)


def reads_texts(config: Any) -> bool:
    """Whether a bed's tasks are of texts."""
    return "tokens" in config


def network(config: Any) -> Any:
    """The encoder that a config names."""
    if not reads_texts(config):
        return models.build(**config.model, dtype=jnp.dtype(config.dtype))
    loaded = of_texts(config.model.name)
    return TextFeatures(loaded.text_encoder()[0], loaded.config["hidden_size"])


def pretrained_texts(config: Any) -> Any:
    """Pretrained parameters of an encoder of texts."""
    _, variables = of_texts(config.model.name).text_encoder()
    return jax.tree.map(jnp.asarray, {"encoder": variables["params"]})


@functools.cache
def of_texts(name: str) -> pretrained.Pretrained:
    """A pretrained model of texts, which is read once."""
    return pretrained.load(name)


def spec(config: Any, *lead: int) -> jax.ShapeDtypeStruct:
    """Shape and type of so many inputs: images of bytes, or texts of tokens."""
    if reads_texts(config):
        return jax.ShapeDtypeStruct((*lead, config.tokens.length), jnp.int32)
    return jax.ShapeDtypeStruct((*lead, *config.data.image_shape), jnp.uint8)


def seen(inputs: Array) -> Array:
    """Inputs as an encoder takes them: bytes of images as floats, tokens as they are."""
    return inputs if _are_tokens(inputs) else augment.to_float(inputs)


def mask_of(inputs: Array) -> Bool[Array, "*b t"] | None:
    """Which tokens are text rather than padding; None of images."""
    return inputs != PADDING if _are_tokens(inputs) else None


def _are_tokens(inputs: Array) -> bool:
    return inputs.dtype == jnp.int32
