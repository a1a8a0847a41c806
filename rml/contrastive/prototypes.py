"""Prototypes: directions that projections are compared with, the clusters of SwAV and DINO."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.pairwise import dot_product
from rml.ops.similarity import normalize


class Prototypes(nn.Module):
    """Cosines of projections with learned prototypes.

    Attributes:
      number: number of prototypes.
      param_dtype: dtype of the parameters.

    Source: SwAV (Caron et al., 2020), section 3.1; the last layer of DINO's head (Caron et al.,
    2021, appendix C), whose lengths of weights stay at 1.
    """

    number: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b k"]:
        """Returns cosines [b, number] of projections [b, d]; `train` changes nothing."""
        del train
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "classes")),
            (x.shape[-1], self.number),
            self.param_dtype,
        )
        return dot_product(normalize(x), normalize(kernel.T))
