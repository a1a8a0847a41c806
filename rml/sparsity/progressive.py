"""Progressive regularisation of a decoder's activations (ProSparse).

Chenyang Song, Xu Han, Zhengyan Zhang et al.: ProSparse: Introducing and Enhancing Intrinsic
Activation Sparsity within Large Language Models, arXiv:2402.13516.

1. The gate's nonlinearity of a trained model is replaced by ReLU, see `relufy`.
2. Training continues on the loss plus λ times the sum over layers of the mean of |x₁|, where
   x₁ is the gate times the up projection, as λ rises in stages.
3. ReLU is replaced by FATReLU, which is zero below a threshold; nothing is trained after it.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.models import Llama
from rml.sparsity.statistics import Statistics

Ramp = Literal["sine", "linear"]


def sine_stages(
    step: Int[Array, ""] | Float[Array, ""] | int,
    *,
    peaks: Sequence[float] | Float[Array, " s"],
    ends: Sequence[int],
    start: int = 0,
) -> Float[Array, ""]:
    """Computes the factor λ of the penalty at a step, in stages that each end on a peak.

    λ is 0 before `start`, λ_1 up to T_1, and from T_{i-1} to T_i it rises along half a sine:

        λ = λ_{i-1} + (λ_i - λ_{i-1}) ½ [sin(-π/2 + π (t - T_{i-1}) / (T_i - T_{i-1})) + 1]

    It stays at the last peak. Equal neighbouring peaks make a constant stage; one peak alone makes
    a constant factor.

    Args:
      step: Step t, counted from 0.
      peaks: λ_1, ..., λ_s.
      ends: Steps T_1 < ... < T_s at which stages end.
      start: Number of first steps without a penalty, the paper's stage 0.

    Returns:
      λ.

    Raises:
      ValueError: There is no stage, peaks and ends are not equally many, or ends do not ascend.

    Source: arXiv:2402.13516, section 3.2 and algorithm 1.
    """
    return _stages(step, peaks, ends, start, "sine")


def linear_stages(
    step: Int[Array, ""] | Float[Array, ""] | int,
    *,
    peaks: Sequence[float] | Float[Array, " s"],
    ends: Sequence[int],
    start: int = 0,
) -> Float[Array, ""]:
    """Computes what `sine_stages` does with straight lines from peak to peak, as an ablation.

    Args:
      step: Step t, counted from 0.
      peaks: λ_1, ..., λ_s.
      ends: Steps T_1 < ... < T_s at which stages end.
      start: Number of first steps without a penalty.

    Returns:
      λ.

    Raises:
      ValueError: As `sine_stages`.
    """
    return _stages(step, peaks, ends, start, "linear")


def _stages(
    step: Array | int, peaks: Sequence[float] | Array, ends: Sequence[int], start: int, ramp: Ramp
) -> Array:
    height, at = jnp.asarray(peaks, float), np.asarray(ends)
    if not len(at) or height.shape != at.shape:
        raise ValueError(
            f"{height.size} peaks and {at.size} ends, expected equally many, at least 1"
        )
    if start > at[0] or (np.diff(at) <= 0).any():
        raise ValueError(f"ends={tuple(ends)}, expected to ascend from at least start={start}")
    done = jnp.clip((step - at[:-1]) / np.maximum(np.diff(at), 1), 0, 1)
    if ramp == "sine":
        # ½ [sin(-π/2 + πx) + 1] = sin²(πx/2), which rounds to 0 and 1 at the ends.
        done = jnp.square(jnp.sin(jnp.pi / 2 * done))
    return jnp.where(step < start, 0.0, height[0] + jnp.sum(jnp.diff(height) * done))


def activation_penalty(
    statistics: Statistics, *, of: Literal["hidden", "gate"] = "hidden"
) -> Float[Array, ""]:
    """Sums over layers the mean magnitude of activations, over channels and text tokens.

    The paper does not say whether ‖x₁‖₁ is a sum or a mean over channels and tokens. With its
    factors only a mean is comparable with the loss; that is this repository's reading.

    Args:
      statistics: What the probe `activation_statistics` finds.
      of: "hidden" is the paper's x₁; "gate" penalises the gate alone.

    Returns:
      The penalty, to be multiplied by λ.

    Source: arXiv:2402.13516, section 3.2, step 2.
    """
    return jnp.sum(statistics.hidden_size if of == "hidden" else statistics.gate_size)


def relufy(module: Llama, *, threshold: float | None = None, shift: float | None = None) -> Llama:
    """Puts ReLU in the place of a decoder's gate nonlinearity; weights load unchanged.

    Args:
      module: The decoder.
      threshold: FATReLU's threshold, if it is to be that.
      shift: Shift of ReLU, if it is to be that.

    Raises:
      ValueError: Both are given.

    Source: arXiv:2402.13516, section 3.2, steps 1 and 3; Mirzadeh et al., arXiv:2310.04564.
    """
    if threshold is not None and shift is not None:
        raise ValueError(f"threshold={threshold} and shift={shift}, expected one of both")
    name = "relu"
    if threshold is not None:
        name = f"fatrelu:{threshold}"
    elif shift is not None:
        name = f"shifted_relu:{shift}"
    return module.clone(activation=name)


def fitted_sparsity(peak: float | Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Computes the percent sparsity that the paper fits to its 7B: 100 - exp(-1.76 λ^0.30 + 3.49).

    Args:
      peak: Last peak λ_S, at least 0.01 in the paper's fit.

    Source: arXiv:2402.13516, appendix on the effect of the last peak.
    """
    return 100 - jnp.exp(-1.76 * jnp.asarray(peak) ** 0.30 + 3.49)
