"""Fine-tuning of a few attention heads by offsets (LoFiT).

Fangcong Yin, Xi Ye, Greg Durrett: LoFiT: Localized Fine-tuning on LLM Representations,
arXiv:2406.01563.

With z [k] the output of a head before the projection back, and everything else frozen:

1. Every head gets a scale 1 + A, z ← (1 + A) ⊙ z; A is trained on loss + λ Σ |A|. The K heads of
   the largest ‖A‖₂ are kept, and A is dropped.
2. Those heads get an offset, z ← z + v, which is trained on the loss alone.

Only v ships: K · k numbers. An offset adds the constant v W_O to what attention gives, so `fold`
makes it a bias that costs nothing. Both are `rml.models.HeadEdits`, an argument of the model;
their heads are those of queries where several share a key head.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from rml.errors import UserError
from rml.models import HeadEdits
from rml.models.pretrained.files import read_safetensors
from rml.models.transformer import check_edits
from rml.ops.pairwise import safe_norm
from rml.sparsity.files import write_new

KEPT = ("layers_heads_width", "heads", "scale", "offset")
"""Tensors of a file of edits; of the last two one may lack."""


def edit_shape(module: Any) -> tuple[int, int, int]:
    """Returns the shape [layers, heads, k] of the edits of a `Llama`, `Bert` or `ViT`."""
    named = hasattr(module, "head_shape")
    width = module.head_shape()[1] if named else module.width // module.heads
    return module.depth, module.heads, width


def init_edits(key: Key[Array, ""], module: nn.Module, *, std: float = 1e-3) -> HeadEdits:
    """Draws what training starts from: scale 1 + A and offset v, A and v from N(0, std²).

    Args:
      key: Key of the draw.
      module: The model.
      std: Standard deviation.

    Returns:
      Edits in float32, whatever the model's type. Step 1 trains `HeadEdits(scale=edits.scale)`,
      step 2 `HeadEdits(offset=edits.offset)`.

    Source: arXiv:2406.01563; the deviation is that of the authors' code.
    """
    shape = edit_shape(module)
    scale, offset = (std * jax.random.normal(own, shape) for own in jax.random.split(key))
    return HeadEdits(1 + scale, offset)


def penalty(edits: HeadEdits) -> Float[Array, ""]:
    """Computes Σ |A| over all elements of all heads, A = scale - 1.

    Args:
      edits: Edits with a scale.

    Returns:
      The sum; its factor λ does not depend on the batch.

    Raises:
      ValueError: There is no scale.

    Source: arXiv:2406.01563, step 1. The sum is over elements, though heads are selected by norms.
    """
    if edits.scale is None:
        raise ValueError("edits have no scale, expected the 1 + A of step 1")
    change = edits.scale - 1
    return jnp.sum(change * jnp.sign(change))  # the gradient at 0 is 0


def head_scores(change: Float[Array, "layers heads k"]) -> Float[Array, "layers heads"]:
    """Computes each head's Euclidean norm of a change.

    Args:
      change: A = scale - 1 after step 1, as in the paper. An offset, or the gradient of the loss
        with respect to the scale, give other rankings.

    Source: arXiv:2406.01563, step 1.
    """
    return safe_norm(change.astype(jnp.promote_types(change.dtype, jnp.float32)))


def select_heads(
    scores: Float[Array, "layers heads"], *, count: int
) -> Bool[Array, "layers heads"]:
    """Selects the heads of the largest scores, of equal ones the first.

    Args:
      scores: Scores of all heads.
      count: Number K of heads that are kept.

    Returns:
      True where a head is kept.

    Raises:
      ValueError: There are not as many heads.
    """
    if not 1 <= count <= scores.size:
        raise ValueError(f"count={count}, expected 1 to the {scores.size} heads of {scores.shape}")
    chosen = jax.lax.top_k(scores.ravel(), count)[1]
    return jnp.zeros(scores.size, bool).at[chosen].set(True).reshape(scores.shape)


def masked(edits: HeadEdits, heads: Bool[Array, "layers heads"]) -> HeadEdits:
    """Leaves every other head as it was: scale 1, offset 0, and no gradient to their edits.

    Args:
      edits: Edits of all heads.
      heads: True where a head is edited.
    """
    scale, offset = edits
    kept = heads[..., None]
    return HeadEdits(
        None if scale is None else jnp.where(kept, scale, 1),
        None if offset is None else jnp.where(kept, offset, 0),
    )


def fold(module: nn.Module, variables: Any, edits: HeadEdits) -> tuple[nn.Module, dict[str, Any]]:
    """Moves edits into the projection back from heads: W_O ← scale ⊙ W_O, b ← b + Σ v W_O.

    Args:
      module: A `Llama`, `Bert` or `ViT`.
      variables: Its variables, without boxes.
      edits: The edits.

    Returns:
      A model that gives without edits what the first one gives with them, and its variables. A
      `Llama` whose projection back has no bias gets one, by its `out_bias`.

    Raises:
      ValueError: The edits have another shape than the model's heads.
    """
    check_edits(edits, edit_shape(module))

    def of_block(block: Any, own: HeadEdits) -> dict[str, Any]:
        inner = block.get("attention", block)
        kernel, bias = inner["out"]["kernel"], inner["out"].get("bias")
        made = {"kernel": kernel}
        if own.scale is not None:
            made["kernel"] = (kernel * own.scale[..., None]).astype(kernel.dtype)
        if own.offset is not None:
            added = jnp.einsum("...hk,...hkd->...d", own.offset, kernel, precision="highest")
            bias = added.astype(kernel.dtype) + (0 if bias is None else bias)
        out = made if bias is None else {**made, "bias": bias}
        inner = {**inner, "out": out}
        return {**block, "attention": inner} if "attention" in block else inner

    params = dict(variables["params"])
    if "blocks" in params:
        params["blocks"] = of_block(params["blocks"], edits)
    else:
        for i in range(edit_shape(module)[0]):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], edits)
            params[f"block{i}"] = of_block(params[f"block{i}"], own)
    if edits.offset is not None and hasattr(module, "out_bias"):
        module = module.clone(out_bias=True)
    return module, {**variables, "params": params}


def save_edits(file: str | Path, edits: HeadEdits) -> None:
    """Writes the edits of those heads that any changes, as safetensors: a few kilobytes.

    The file is there whole or not at all.

    Args:
      file: File to write, which must not exist.
      edits: Edits of all heads.

    Raises:
      UserError: The file exists, or there is neither a scale nor an offset.
    """
    if edits.scale is None and edits.offset is None:
        raise UserError("edits have neither a scale nor an offset, expected one of them or both")
    given = {name: np.asarray(x) for name, x in edits._asdict().items() if x is not None}
    neutral = {"scale": 1, "offset": 0}
    changed = np.any([(x != neutral[name]).any(-1) for name, x in given.items()], axis=0)
    tensors = {name: x[changed] for name, x in given.items()}
    tensors["heads"] = np.argwhere(changed).astype(np.int32)
    tensors["layers_heads_width"] = np.array(next(iter(given.values())).shape, np.int32)
    write_new(file, tensors)


def load_edits(file: str | Path) -> HeadEdits:
    """Reads what `save_edits` wrote.

    Args:
      file: The file.

    Returns:
      Edits of all heads, neutral where none was kept.

    Raises:
      UserError: It is missing or damaged, or has other tensors.
    """
    found = {name: tensor.read() for name, tensor in read_safetensors(Path(file)).items()}
    others = sorted(set(found) - set(KEPT))
    if others or not {"heads", "layers_heads_width"} <= set(found):
        named = ", ".join(sorted(found))
        raise UserError(f"{file} has tensors {named}, expected edits: {', '.join(KEPT)}")
    at, shape = tuple(found["heads"].T), tuple(found["layers_heads_width"])

    def whole(name: str, neutral: float) -> Array | None:
        if name not in found:
            return None
        return jnp.full(shape, neutral, found[name].dtype).at[at].set(found[name])

    return HeadEdits(whole("scale", 1.0), whole("offset", 0.0))
