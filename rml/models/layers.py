"""Building blocks that encoders share: annotated Dense, normalisation, activations by name."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import lax
from jax.custom_derivatives import SymbolicZero

from rml.ops.sparse_activations import fatrelu, keep_largest, shifted_relu

Dtype = Any
NormKind = str  # "batch", "layer", "group" or "none"

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": lambda x: jnp.clip(x, 0, 6),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}
PARAMETRISED: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "fatrelu": fatrelu,
    "shifted_relu": shifted_relu,
    "top_silu": lambda x, count: keep_largest(nn.silu(x), int(count)),
    "top_relu": lambda x, count: keep_largest(nn.relu(x), int(count)),
}
"""Nonlinearities with a number after their name, "fatrelu:0.01": a threshold, a shift, or how many
of a token's values are kept."""
MIN_IMAGE = 8
_MANY_ROWS = 256
"""Rows of a product from which a copy of its kernel's gradient is little beside it."""
_TURNED_ROWS = 128
"""Most rows of a kernel that are turned at once, so that a core's cache holds them."""
_LEAST_TURNED = 8
"""Least rows of it that are worth a step of a loop; of a prime number all are turned at once."""


class Stages(NamedTuple):
    """What an encoder found, where the outputs of its stages were asked for too.

    Attributes:
      features: What it returns otherwise.
      stages: Output of each stage, first to last: maps [b, h, w, c], tokens [b, t, d] or rows.
    """

    features: jax.Array
    stages: tuple[jax.Array, ...]


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Returns the error for a name that is not one of `known`, with the nearest valid name."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}{hint}")


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the nonlinearity called `name`.

    Raises:
      ValueError: `name` is neither a key of `ACTIVATIONS` nor, before a colon and a number that is
        not negative, of `PARAMETRISED`.
    """
    kind, _, number = name.partition(":")
    if kind in PARAMETRISED:
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ValueError(f"activation {name!r} needs a number of at least 0, as in '{kind}:1'")
        return functools.partial(_with_number, PARAMETRISED[kind], value)
    if name not in ACTIVATIONS:
        raise unknown(
            "activation", name, (*ACTIVATIONS, *(f"{own}:NUMBER" for own in PARAMETRISED))
        )
    return ACTIVATIONS[name]


def _with_number(
    function: Callable[[jax.Array, float], jax.Array], number: float, x: jax.Array
) -> jax.Array:
    return function(x, number)


def module_options(
    name: str, module: Callable[..., nn.Module], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads a module's attributes from a config, where dtypes may be strings.

    Args:
      name: what the user calls the module.
      module: its class.
      options: attributes by name.

    Returns:
      The attributes.

    Raises:
      ValueError: an option is unknown, or a dtype is none; the message names it.
    """
    fields = {f.name for f in dataclasses.fields(module)} - {"parent", "name"}  # type: ignore[arg-type]
    found = dict(options)
    for option, value in options.items():
        if option not in fields:
            raise unknown(f"option of {name}", option, fields)
        if option in ("dtype", "param_dtype") and value is not None:
            try:
                found[option] = jnp.dtype(value)
            except TypeError as error:
                raise ValueError(f"{option} of {name} must be a dtype, got {value!r}") from error
    return found


def check_image(x: jax.Array) -> None:
    """Raises ValueError unless `x` is a batch of NHWC images of at least 8x8 pixels."""
    if x.ndim != 4:
        raise ValueError(f"an encoder reads images of shape [b, h, w, c], got shape {x.shape}")
    if min(x.shape[1:3]) < MIN_IMAGE:
        raise ValueError(
            f"an encoder reads images of at least {MIN_IMAGE}x{MIN_IMAGE} pixels, got {x.shape}"
        )


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    *,
    name: str | None = None,
    use_bias: bool = True,
    dtype: Dtype = None,
    param_dtype: Dtype = jnp.float32,
    kernel_init: nn.initializers.Initializer | None = None,
) -> nn.Dense:
    """Makes a Dense layer whose kernel carries the logical `axes` and whose bias the second."""
    init = kernel_init or nn.initializers.lecun_normal()
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        dot_general=_product,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def _product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`lax.dot_general` of features [..., i] and a kernel [i, o].

    XLA's CPU backend takes up to three times as long for the gradient x^T @ dy of a kernel in
    float32 that narrows, i > o, as for its transpose dy^T @ x. That is what differentiation makes
    of a product with the kernel's transpose, and the tangent here is one.
    """

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot_general(x, kernel, dimensions, **options)

    narrows = kernel.shape[0] > kernel.shape[1] and kernel.dtype == jnp.float32
    rows = math.prod(x.shape[:-1])
    # An exported program's number of rows is a symbol, which nothing is compared with.
    many = isinstance(rows, int) and rows >= _MANY_ROWS
    split = any(jax.typeof(kernel).sharding.spec)  # an explicit mesh refuses a loop over its rows
    if not many or not narrows or split or jax.default_backend() != "cpu":
        return product(x, kernel)

    @jax.custom_jvp
    def narrowing(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel)

    @functools.partial(narrowing.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (dx, dk) = primals, tangents
        last = (((x.ndim - 1,), (1,)), ((), ()))
        value = product(x, kernel)
        tangent = jnp.zeros_like(value)
        if not isinstance(dx, SymbolicZero):
            tangent = product(dx, kernel)
        if not isinstance(dk, SymbolicZero):
            along = lax.dot_general(x, _turned(dk), last, **options)
            tangent = along if isinstance(dx, SymbolicZero) else tangent + along
        return value, tangent

    return narrowing(x, kernel)


def _turned(kernel: jax.Array) -> jax.Array:
    """The transpose, made in a loop over rows.

    Reverse differentiation turns a kernel's gradient by the same loop, once. Without it XLA turns
    the product back, or leaves the gradient on its side, where each of an optimizer's arrays reads
    it across its rows at several times the cost. Over several devices, among which the rows may be
    split, it is one transposition.
    """
    rows, columns = kernel.shape
    if jax.device_count() > 1:
        return lax.optimization_barrier(kernel.T)
    few = max(n for n in range(1, min(rows, _TURNED_ROWS) + 1) if rows % n == 0)
    few = few if few >= _LEAST_TURNED else rows
    parts = lax.map(jnp.transpose, kernel.reshape(-1, few, columns))
    return parts.transpose(1, 0, 2).reshape(columns, rows)


def layer_norm(
    name: str, *, epsilon: float, dtype: Dtype, param_dtype: Dtype, use_bias: bool = True
) -> nn.LayerNorm:
    """Makes a LayerNorm over tokens, whose scale and offset carry the logical axis "embed"."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def rms_norm(name: str, *, epsilon: float, dtype: Dtype, param_dtype: Dtype) -> nn.RMSNorm:
    """Makes an RMSNorm over tokens, whose scale carries the logical axis "embed"."""
    return nn.RMSNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        name=name,
    )


class _BatchNorm(nn.Module):
    """Normalisation of channels over all other axes: `flax.linen.BatchNorm`, faster on a CPU.

    Of x * factor + offset the gradients are sums of `dy` and of `dy * x`, which XLA's CPU backend
    takes in passes over the two. For those of linen's (x - mean) * factor it makes two more arrays
    as large. Rounding is that of the variance, E[x^2] - E[x]^2, in either: some 1e-7 of the square
    of mean over standard deviation. The statistics have the axis of the channels, in linen none.
    """

    axis: str
    momentum: float
    epsilon: float
    use_scale: bool
    use_bias: bool
    scale_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape = x.shape[-1:]

        def kept(name: str, init: Callable[..., jax.Array]) -> nn.Variable[Any]:
            def start() -> Any:
                value = init(shape, jnp.float32)
                boxed = nn.LogicallyPartitioned(value, (self.axis,))
                return boxed if self.is_initializing() else value

            return self.variable("batch_stats", name, start)

        mean_kept, var_kept = kept("mean", jnp.zeros), kept("var", jnp.ones)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        mean: jax.Array = mean_kept.value
        var: jax.Array = var_kept.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            # Rounding may leave less than nothing of a constant channel.
            var = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
            if not self.is_initializing():
                for own, new in ((mean_kept, mean), (var_kept, var)):
                    follows = self.momentum * own.value + (1 - self.momentum) * new
                    own.value = follows.astype(own.value.dtype)
        factor = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor = factor * scale
        if train:
            offset = -mean * factor
            y = x * factor + (offset if bias is None else offset + bias)
        else:
            y = (x - mean) * factor
            y = y if bias is None else y + bias
        return y.astype(dtype)


class Norm(nn.Module):
    """Normalisation over batch, channels or channel groups, or none.

    Attributes:
      kind: "batch" (statistics in `batch_stats`), "layer" (over channels), "group" (at most 32
        groups, as many as divide the channels) or "none".
      axis: the logical name of the channel axis.
      affine: whether a learned scale and offset follow.
      scale_init: initial value of the scale; zeros makes a residual branch start as the identity.
      momentum: decay of the running statistics.
      epsilon: added to the variance.
      dtype: compute dtype (statistics are always taken in float32 or wider).
      param_dtype: dtype of scale and offset.
    """

    kind: NormKind = "batch"
    axis: str = "channels_out"
    affine: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalises `x` of shape [b, ..., c]."""
        common: dict[str, Any] = {
            "epsilon": self.epsilon,
            "use_scale": self.affine,
            "use_bias": self.affine,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "scale_init": nn.with_logical_partitioning(self.scale_init, (self.axis,)),
            "bias_init": nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)),
        }
        match self.kind:
            case "batch":
                norm = _BatchNorm(self.axis, self.momentum, name="bn", **common)
                return norm(x, train=train)
            case "layer":
                return nn.LayerNorm(name="ln", **common)(x)
            case "group":
                groups = next(g for g in range(min(32, x.shape[-1]), 0, -1) if x.shape[-1] % g == 0)
                return nn.GroupNorm(num_groups=groups, name="gn", **common)(x)
            case "none":
                return x
        raise unknown("norm", self.kind, ("batch", "layer", "group", "none"))
