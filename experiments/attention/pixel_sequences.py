"""Images read as sequences of pixels, and networks of convolutions along a sequence."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from rml import models


class PixelSequence(nn.Module):
    """An encoder of sequences that reads images pixel by pixel, row after row.

    Attributes:
      encoder: The encoder, of [b, t, c].
    """

    encoder: nn.Module

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Array:
        """Features of images."""
        b, h, w, c = images.shape
        return self.encoder(images.reshape(b, h * w, c), train=train)


class SequenceConvNet(nn.Module):
    """Stages of convolutions along a sequence, with batch normalisation, and a mean at the end.

    Attributes:
      widths: Channels of each stage.
      size: Size of all kernels.
      stride: Stride of each stage but the first.
      residual: Whether a residual branch of two convolutions follows the one of each stage.
    """

    widths: Sequence[int]
    size: int
    stride: int
    residual: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Features of sequences."""

        def layer(x: Array, width: int, stride: int, name: str) -> Array:
            conv = models.Conv(width, (self.size, 1), (stride, 1), use_bias=False, name=name)
            return models.Norm("batch", name=f"{name}_norm")(conv(x), train=train)

        x = x[:, :, None]  # images of one column, whose convolution is fast in a loop over runs
        for i, width in enumerate(self.widths):
            x = nn.relu(layer(x, width, self.stride if i else 1, f"stage{i}"))
            if self.residual:
                branch = nn.relu(layer(x, width, 1, f"stage{i}_first"))
                x = nn.relu(x + layer(branch, width, 1, f"stage{i}_second"))
        return x.mean(axis=(1, 2))
