"""Heads that follow an encoder: projection, prediction, classification."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models.layers import Dtype, Norm, activation, dense
from rml.ops import full_precision, normalize


class ProjectionHead(nn.Module):
    """MLP from features to the space where a contrastive loss is taken.

    Attributes:
      features: output width.
      hidden: hidden width; None takes the width of the input.
      layers: number of Dense layers; 1 is a linear projection.
      norm: BatchNorm after each hidden Dense.
      last_norm: BatchNorm without scale and offset after the last Dense (MoCo v3, SimSiam).
      last_bias: whether the last Dense has a bias (never under `last_norm`).
      activation: name of the nonlinearity.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: SimCLR (Chen et al., 2020), section 2.1 and 4.2.
    """

    features: int = 128
    hidden: int | None = None
    layers: int = 2
    norm: bool = False
    last_norm: bool = False
    last_bias: bool = True
    activation: str = "relu"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b p"]:
        """Projects features.

        Args:
          x: features [b, d].
          train: whether BatchNorm uses (and updates) the statistics of this batch.

        Returns:
          Projections [b, features], not normalised.

        Raises:
          ValueError: `layers` is below 1 or the activation is unknown.
        """
        if self.layers < 1:
            raise ValueError(f"a head needs at least 1 layer, got layers={self.layers}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        act = activation(self.activation)
        hidden = self.hidden or x.shape[-1]
        axes = ("embed", "mlp")
        for i in range(self.layers - 1):
            x = dense(hidden, axes, name=f"dense{i}", use_bias=not self.norm, **dtypes)(x)
            if self.norm:
                x = Norm("batch", axis=axes[1], name=f"norm{i}", **dtypes)(x, train=train)
            x = nn.with_logical_constraint(act(x), ("batch", axes[1]))
            axes = axes[::-1]
        bias = self.last_bias and not self.last_norm
        x = dense(self.features, axes, name="out", use_bias=bias, **dtypes)(x)
        if self.last_norm:
            x = Norm("batch", affine=False, name="out_norm", **dtypes)(x, train=train)
        return nn.with_logical_constraint(x, ("batch", axes[1]))


class PredictionHead(nn.Module):
    """Two-layer MLP that predicts one view's projection from the other's.

    Attributes:
      features: output width, that of the projection; None takes the width of the input.
      hidden: hidden width, a bottleneck in SimSiam (512 of 2048), wider in BYOL (4096 of 256).
      norm: BatchNorm after the hidden Dense.
      activation: name of the nonlinearity.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: BYOL (Grill et al., 2020), section 3.3; SimSiam (Chen and He, 2021), section 3.
    """

    features: int | None = None
    hidden: int = 512
    norm: bool = True
    activation: str = "relu"
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b p"]:
        """Predicts from projections [b, d]; returns [b, features]."""
        return ProjectionHead(
            features=self.features or x.shape[-1],
            hidden=self.hidden,
            norm=self.norm,
            activation=self.activation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="mlp",
        )(x, train=train)


class Classifier(nn.Module):
    """Linear or cosine classifier.

    Attributes:
      classes: number of classes.
      cosine: logits are `scale` times the cosine of features and class weights, without bias.
      scale: initial value of the learned scale of cosine logits.
      zero_init: start the weights of a linear classifier at zero.
      dtype: dtype of the logits and of a linear classifier's product, cosines being computed in
        float32 or wider; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: cosine: Gidaris and Komodakis (2018), section 3.2.
    """

    classes: int
    cosine: bool = False
    scale: float = 10.0
    zero_init: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
        """Returns logits [b, classes] of features [b, d]; `train` changes nothing."""
        del train
        init = nn.initializers.lecun_normal()
        if not self.cosine:
            logits = dense(
                self.classes,
                ("embed", "classes"),
                name="out",
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                kernel_init=nn.initializers.zeros if self.zero_init else init,
            )(x)
            return nn.with_logical_constraint(logits, ("batch", "classes"))
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, ("embed", "classes")),
            (x.shape[-1], self.classes),
            self.param_dtype,
        )
        scale = self.param("scale", nn.initializers.constant(self.scale), (), self.param_dtype)
        x, kernel, scale = nn.dtypes.promote_dtype(x, kernel, scale, dtype=self.dtype)
        logits = (scale * _cosines(x, kernel)).astype(x.dtype)
        return nn.with_logical_constraint(logits, ("batch", "classes"))


@full_precision
def _cosines(x: Float[Array, "b d"], kernel: Float[Array, "d c"]) -> Float[Array, "b c"]:
    return normalize(x) @ normalize(kernel.T).T
