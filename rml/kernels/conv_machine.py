"""The convolutional deep kernel machine: inducing patches, Gram matrices over locations.

Locations of images are points, whose Gram matrix with inducing points is propagated in blocks. An
inducing point has no location: in a convolution it stands for a patch, at whose offset d lies the
combination Σ_j C_dij of the layer's inducing points j. So a convolution of windows of D offsets is

    K'_ii = 1/D Σ_d C_d K_ii C_dᵀ,
    K'_ti(r) = 1/D Σ_d K_ti(r + d) C_dᵀ,
    K'_t(r) = 1/D Σ_d K_t(r + d).

The authors' code averages K_t at the border over the offsets inside the image. Here all three
blocks count those outside as zeros, so that they are blocks of one positive semi-definite matrix.

Derivatives are those of reverse mode, as of `rml.models.conv.conv2d`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, Int

from rml.kernels.conv_nngp import window_mean
from rml.kernels.gram_kernels import Blocks, Kernel, input_gram
from rml.kernels.layers import Layer, layer_kernel, propagate, stack_layers
from rml.kernels.outputs import Outputs, expected_log_softmax, output_kl, output_marginals
from rml.kernels.sparse import Terms
from rml.models.conv import conv2d
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky, solve_lower
from rml.ops.shapes import check_above_0, check_between, check_shapes
from rml.ops.similarity import wide


class ConvMachine(NamedTuple):
    """Trained numbers of a convolutional machine, a pytree.

    Attributes:
      patches: Inducing patches of the input; every layer has as many inducing points.
      mixers: C of each hidden layer, of which inducing points those after it are patches.
      raw: Free parameters of each hidden layer's inducing Gram matrix, or None for a sparse
        Gaussian process of the same kernel.
      outputs: Approximate posterior of the outputs at the inducing points.
      log_scales: Each kernel reads exp(log_scale) G. One a hidden layer and one for the outputs.
      log_amplitude: Logarithm of what multiplies the outputs' kernel.
    """

    patches: Float[Array, "p k k c"]
    mixers: Float[Array, "depth k k p p"]
    raw: Any
    outputs: Outputs
    log_scales: Float[Array, " layers"]
    log_amplitude: Float[Array, ""]


def draw_patches(
    key: Any, x: Float[Array, "n h w c"], *, count: int, size: int
) -> Float[Array, "count size size c"]:
    """Draws patches of images to be inducing patches, uniformly over images and locations.

    Raises:
      ValueError: If the number of patches is not above 0, or the size not from 1 to the images'.
    """
    n, h, w, c = x.shape
    check_above_0(count=count)
    check_between(1, min(h, w), size=size)
    starts = jax.random.randint(key, (count, 3), 0, jnp.array([n, h - size + 1, w - size + 1]))

    def patch(start: Array) -> Array:
        return jax.lax.dynamic_slice(x, (*start, 0), (1, size, size, c))[0]

    return jax.vmap(patch)(starts)


def init_conv(
    key: Any,
    patches: Float[Array, "p k k c"],
    *,
    depth: int,
    outputs: int,
    learned: bool = True,
    amplitude: float = 1.0,
) -> ConvMachine:
    """Makes the machine at its prior, with mixers drawn as the authors' code draws them.

    Args:
      key: Typed key of the mixers, N(0, 1/p).
      patches: Inducing patches, such as `draw_patches` of the data.
      depth: Number of hidden layers, convolutions after that of the inputs.
      outputs: Number of outputs, or of classes.
      learned: Whether Gram matrices are parameters; False is a sparse Gaussian process.
      amplitude: What first multiplies the outputs' kernel. Means over locations differ little from
        image to image, so that outputs differ little at 1.

    Returns:
      The machine, whose mixers are parameters either way; see `project_mixers`.

    Raises:
      ValueError: If the depth is below 0, or the number of outputs or the amplitude is not above 0.
    """
    check_between(0, depth=depth)
    check_above_0(outputs=outputs, amplitude=amplitude)
    p, size, dtype = patches.shape[0], patches.shape[1], patches.dtype
    mixers = jax.random.normal(key, (depth, size, size, p, p), dtype) / p**0.5
    return ConvMachine(
        patches=patches,
        mixers=mixers,
        raw=jnp.zeros((depth, p, p), dtype) if learned else None,
        outputs=Outputs(jnp.zeros((p, outputs), dtype), jnp.zeros((p, p), dtype)),
        log_scales=jnp.zeros(depth + 1, dtype),
        log_amplitude=jnp.log(jnp.asarray(amplitude, dtype)),
    )


def _convolution(x: Array, filters: Array) -> Array:
    """Sums over windows, of zeros outside: [t, h, w, in] and [k, k, in, out] to [t, h, w, out]."""
    return conv2d(x, filters)


@full_precision
def patch_blocks(patches: Float[Array, "p k k c"], x: Float[Array, "t h w c"]) -> Blocks:
    """Computes the blocks of the Gram matrix of inducing patches and those at all locations.

    Raises:
      ValueError: If the patches are not square, of odd width and of the images' channels.
    """
    size, other, channels = patches.shape[1:]
    if size != other or size % 2 == 0 or channels != x.shape[3]:
        raise ValueError(
            f"patches must be square, of odd width and of the images' channels, got patches "
            f"{patches.shape} and images {x.shape}"
        )
    patches, x = wide(patches, x)
    ti = _convolution(x, jnp.moveaxis(patches, 0, -1)) / (size * size * channels)
    t = jax.vmap(lambda v: window_mean(v, size=size))(jnp.mean(x**2, axis=-1))
    ii = input_gram(patches.reshape(len(patches), -1))
    return Blocks(ii, ti.reshape(-1, len(patches)), t.reshape(-1))


@full_precision
def convolve_blocks(
    k: Blocks, mixer: Float[Array, "k k p p"], *, images: tuple[int, int, int]
) -> Blocks:
    """Computes the blocks after a convolution, see the module's docstring.

    Args:
      k: Blocks of locations, image by image.
      mixer: C_d of each offset.
      images: Number, height and width of the images.

    Returns:
      Blocks of the same shapes.

    Source: Milsom, Anson and Aitchison, Convolutional Deep Kernel Machines, arXiv:2309.09814, the
      inter-domain inducing points.
    """
    size, p = mixer.shape[0], mixer.shape[-1]
    (mixer,) = wide(mixer)
    ii = jnp.einsum("abij,jk,ablk->il", mixer, k.ii, mixer) / size**2
    ti = _convolution(k.ti.reshape(*images, p), jnp.swapaxes(mixer, -2, -1)) / size**2
    t = jax.vmap(lambda v: window_mean(v, size=size))(k.t.reshape(images))
    return Blocks(ii, ti.reshape(-1, p), t.reshape(-1))


@full_precision
def pool_blocks(k: Blocks, *, images: int, jitter: float = 0.0) -> Blocks:
    """Computes the blocks of images' means over locations.

    Covariances of an image's locations with each other are not at hand: they are taken through the
    inducing points (Nyström), and each location's remaining variance is its own.

    Args:
      k: Blocks of locations, image by image.
      images: Number of images.
      jitter: Share of the mean diagonal added to K_ii, see `rml.ops.cholesky`.

    Returns:
      Blocks of as many points as images.

    Source: Milsom, Anson and Aitchison, arXiv:2309.09814, global average pooling.
    """
    root = solve_lower(cholesky(k.ii, jitter=jitter).factor, k.ti.T)
    own = (k.t - jnp.sum(root**2, axis=0)).reshape(images, -1)
    mean = jnp.mean(root.reshape(len(root), images, -1), axis=2)
    t = jnp.sum(mean**2, axis=0) + jnp.mean(own, axis=1) / own.shape[1]
    return Blocks(k.ii, jnp.mean(k.ti.reshape(images, -1, len(root)), axis=1), t)


def _hidden(
    machine: ConvMachine, index: int, k: Blocks, *, images: tuple[int, ...], jitter: float
) -> Layer:
    """Computes a hidden layer from its kernel: the convolution and the Gram matrix."""
    n, height, width = images
    k = convolve_blocks(k, machine.mixers[index], images=(n, height, width))
    raw = None if machine.raw is None else machine.raw[index]
    return propagate(k, raw, jitter=jitter)


def conv_layers(
    machine: ConvMachine,
    x: Float[Array, "t h w c"],
    *,
    kernel: Kernel,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> tuple[Blocks, list[Layer]]:
    """Computes the last layer's kernel of all locations in blocks, and the hidden layers.

    A layer is the kernel, the convolution and the Gram matrix; the first Gram matrix is that of
    the input's patches.
    """
    g, layers = patch_blocks(machine.patches, x), []
    for index in range(machine.mixers.shape[0]):
        k = layer_kernel(machine.log_scales[index], g, kernel=kernel, normalization=normalization)
        layers.append(_hidden(machine, index, k, images=x.shape[:3], jitter=jitter))
        g = layers[-1].gram
    k = layer_kernel(machine.log_scales[-1], g, kernel=kernel, normalization=normalization)
    return k, layers


@full_precision
def project_mixers(
    key: Any,
    machine: ConvMachine,
    x: Float[Array, "t h w c"],
    *,
    kernel: Kernel,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> ConvMachine:
    """Sets mixers by images: each inducing point after a convolution stands for a patch of them.

    With the layer's kernel K, the patch at r of an image has C_d = K_ti(r + d) K_ii⁻¹: at each
    offset that combination of the inducing points which is nearest to what the patch has there,
    and none outside the image. Drawn mixers, N(0, 1/p), are patches of no image, and explain much
    less of the variance of locations.

    Args:
      key: Typed key of the patches, drawn uniformly over images and locations.
      machine: Machine whose other parameters stay.
      x: Images.
      kernel: See `propagate_conv`.
      normalization: See `propagate_conv`.
      jitter: See `propagate_conv`.

    Returns:
      The machine with other mixers.

    Source: ours; the authors of arXiv:2309.09814 draw them.
    """
    n, height, width, _ = x.shape
    depth, size, _, p, _ = machine.mixers.shape
    g = patch_blocks(machine.patches, x)
    for index in range(depth):
        k = layer_kernel(machine.log_scales[index], g, kernel=kernel, normalization=normalization)
        factor = cholesky(k.ii, jitter=jitter).factor
        combined = cho_solve((factor, True), k.ti.T).T.reshape(n, height, width, p)
        padded = jnp.pad(combined, ((0, 0), *((size // 2,) * 2,) * 2, (0, 0)))
        patches = draw_patches(jax.random.fold_in(key, index), padded, count=p, size=size)
        mixers = machine.mixers.at[index].set(jnp.moveaxis(patches, 0, 2))
        machine = machine._replace(mixers=mixers)
        g = _hidden(machine, index, k, images=x.shape[:3], jitter=jitter).gram
    return machine


def conv_inducing_grams(
    machine: ConvMachine, *, kernel: Kernel, normalization: str = "none", jitter: float = 1e-5
) -> Float[Array, "depth p p"]:
    """Computes Gram matrices of the inducing points in the hidden layers."""
    k, layers = conv_layers(
        machine, machine.patches[:1], kernel=kernel, normalization=normalization, jitter=jitter
    )
    return stack_layers([layer.gram.ii for layer in layers], k.ii)


def propagate_conv(
    machine: ConvMachine,
    x: Float[Array, "t h w c"],
    *,
    kernel: Kernel,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> Terms:
    """Propagates images through all layers, conditionally on the inducing points.

    Args:
      machine: The parameters.
      x: Images.
      kernel: Kernel of every layer.
      normalization: Normalisation of each Gram matrix before its kernel, see `normalize_blocks`.
      jitter: Share of the mean diagonal added to inducing kernel matrices.

    Returns:
      Marginals of the outputs and the hidden layers' terms.

    Source: Milsom, Anson and Aitchison, arXiv:2309.09814. Of the paper are the layers, inducing
      points, pooling and objective; its residual blocks, strides and whitening are not here.
    """
    k, layers = conv_layers(machine, x, kernel=kernel, normalization=normalization, jitter=jitter)
    pooled = pool_blocks(k, images=x.shape[0], jitter=jitter)
    pooled = Blocks(*(jnp.exp(machine.log_amplitude) * block for block in pooled))
    zero = jnp.zeros(1, pooled.t.dtype)
    return Terms(
        output_marginals(pooled, machine.outputs, jitter=jitter),
        jnp.stack([layer.kl for layer in layers]) if layers else zero[:0],
        jnp.max(jnp.stack([layer.jitter for layer in layers])) if layers else zero[0],
    )


def conv_elbo(
    machine: ConvMachine,
    x: Float[Array, "t h w c"],
    labels: Int[Array, " t"],
    key: Any,
    *,
    total: int | Array,
    kernel: Kernel,
    widths: Float[Array, " depth"],
    samples: int = 16,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> Float[Array, ""]:
    """Estimates from one batch, unbiased, the machine's objective an image.

    It is `rml.kernels.elbo` with a categorical likelihood.

    Args:
      machine: The parameters.
      x: Images of the batch.
      labels: Their classes.
      key: Typed key of the Monte Carlo mean of the likelihood.
      total: Number of images that the batch stands for.
      kernel: Kernel of every layer.
      widths: ν of each hidden layer.
      samples: Draws of that mean.
      normalization: See `propagate_conv`.
      jitter: See `propagate_conv`.

    Returns:
      The objective, to be maximised, in nats an image.

    Raises:
      ValueError: If labels or widths do not fit the images and the machine's layers or, outside
        `jit`, a label is out of range.
    """
    terms = propagate_conv(machine, x, kernel=kernel, normalization=normalization, jitter=jitter)
    check_shapes(mean=(terms.prediction.mean, "t c"), labels=(labels, "t"))
    check_shapes(widths=(widths, "depth"), kls=(terms.kls, "depth"))
    fitted = jnp.mean(expected_log_softmax(key, *terms.prediction, labels, samples=samples))
    return fitted - (jnp.sum(widths * terms.kls) + output_kl(machine.outputs)) / total
