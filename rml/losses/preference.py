"""Preference: of two answers to a prompt the one that was chosen becomes likelier."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.ops.shapes import check_above_0, check_between, check_indices, check_shapes
from rml.ops.similarity import wide


def sequence_log_prob(
    logits: Float[Array, "b t v"], tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> Float[Array, " b"]:
    """Computes Σ_t log p(token_t | tokens before it) over the tokens of an answer.

    Logits at a place are those of the next token, so that the first token has none and is never
    counted.

    Args:
      logits: Logits of a causal language model that read `tokens`.
      tokens: Tokens of a prompt and its answer, perhaps with padding.
      mask: Mask of the tokens that belong to the answer.

    Returns:
      The log-probability of each answer, in float32 or wider; 0 for one without tokens.

    Raises:
      ValueError: If shapes do not fit or, outside `jit`, a token that counts is out of range.

    Source: Rafailov et al., arXiv:2305.18290, Section 4.
    """
    check_shapes(logits=(logits, "b t v"), tokens=(tokens, "b t"), mask=(mask, "b t"))
    check_indices("tokens", jnp.where(mask[:, 1:], tokens[:, 1:], 0), logits.shape[2])
    (logits,) = wide(logits[:, :-1])
    logs = jax.nn.log_softmax(logits, axis=-1)
    each = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(mask[:, 1:], each, 0), axis=1)


def dpo_loss(
    chosen: Float[Array, " b"],
    rejected: Float[Array, " b"],
    reference_chosen: Float[Array, " b"],
    reference_rejected: Float[Array, " b"],
    *,
    beta: float | Float[Array, ""] = 0.1,
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " b"]:
    """Computes -(1 - ε) log σ(β m) - ε log σ(-β m) of the margin m.

    The margin m = (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)) says by how much
    more the model prefers the chosen answer y_w to the rejected one y_l than its reference does.

    Args:
      chosen: The model's log-probabilities of the chosen answers, see `sequence_log_prob`.
      rejected: Its log-probabilities of the rejected answers.
      reference_chosen: The reference's log-probabilities of the chosen answers; no gradient flows.
      reference_rejected: The reference's log-probabilities of the rejected answers.
      beta: Strength β with which the model is held to the reference, above 0.
      smoothing: Share ε of pairs whose answers are taken to be exchanged, in [0, 0.5].

    Returns:
      The loss of each pair, in float32 or wider; log 2 where the model is its reference.

    Raises:
      ValueError: If shapes do not fit, `beta` is not above 0, or `smoothing` is out of range.

    Source: Rafailov et al., Direct Preference Optimization, arXiv:2305.18290, eq. 7. Smoothing is
    that of Mitchell's note on conservative DPO, 2023.
    """
    check_shapes(
        chosen=(chosen, "n"),
        rejected=(rejected, "n"),
        reference_chosen=(reference_chosen, "n"),
        reference_rejected=(reference_rejected, "n"),
    )
    check_above_0(beta=beta)
    check_between(0, 0.5, smoothing=smoothing)
    chosen, rejected = wide(chosen, rejected)
    known = wide(*map(jax.lax.stop_gradient, (reference_chosen, reference_rejected)))
    margin = beta * ((chosen - known[0]) - (rejected - known[1]))
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - smoothing) * right - smoothing * wrong
