"""Tokens of a student in the last blocks of its teacher, whose parameters they thereby meet."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from rml.models import layers
from rml.models.vit import ViT, blocks_of


def through_teacher(
    module: ViT, variables: PyTree, tokens: Float[Array, "b t d"], *, start: int
) -> Float[Array, "b t d"]:
    """Applies the last blocks of a frozen ViT and its norm to tokens that are not its own.

    The gradient flows to the tokens, through the teacher's weights, and none into these. With the
    teacher's own tokens of that place the result is what its features are the mean of, if it pools
    by "gap" and has no projection after its norm. A plain ViT has no stages: a cut before the last
    quarter of its blocks leaves as many as the last stage of a hierarchical one. All tokens that
    are given pass the blocks. A class token is no place of a grid: the caller drops it.

    Args:
      module: The teacher.
      variables: Its variables, as `module.apply` takes them.
      tokens: Tokens in the teacher's width, such as a student's stage after a projector.
      start: Number of blocks that are left out; with the teacher's depth the norm alone is applied.

    Returns:
      Tokens as they leave the norm.

    Raises:
      ValueError: Tokens have another width than the teacher, or there is no such block.

    Source: Fan et al., ScaleKD, arXiv:2411.06786, teacher parameter perception.
    """
    if tokens.ndim != 3 or tokens.shape[-1] != module.width:
        raise ValueError(
            f"tokens have shape {tokens.shape}, expected [b, t, {module.width}] as the teacher's"
        )
    last, kept = last_blocks(module, variables, start=start)
    found = _Last(last, parent=None).apply(
        {"params": jax.lax.stop_gradient(kept["params"])}, tokens
    )
    assert isinstance(found, jax.Array)
    return found


def last_blocks(module: ViT, variables: PyTree, *, start: int) -> tuple[ViT, dict[str, PyTree]]:
    """Cuts off the last blocks of a ViT and its norm: all of it that `through_teacher` reads.

    Parameters that are stacked over layers are sliced. Cuts of ViTs of different depth that are
    equally long have parameters of the same shapes.

    Args:
      module: A ViT.
      variables: Its variables.
      start: Number of blocks that are left out.

    Returns:
      A ViT of the depth that is left, and the parameters of its blocks and its norm.

    Raises:
      ValueError: There is no such block.
    """
    if not 0 <= start <= module.depth:
        raise ValueError(f"start is {start}, expected 0 to {module.depth}, the teacher's depth")
    params = variables["params"]
    if module.scan:
        kept = {"blocks": jax.tree.map(lambda leaf: leaf[start:], params["blocks"])}
    else:
        kept = {f"block{i - start}": params[f"block{i}"] for i in range(start, module.depth)}
    return module.clone(depth=module.depth - start), {"params": {**kept, "norm": params["norm"]}}


class _Last(nn.Module):
    """The blocks of a ViT and its norm, by the names of its own parameters."""

    vit: ViT

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        vit = self.vit
        dtypes: dict[str, Any] = {"dtype": vit.dtype, "param_dtype": vit.param_dtype}
        if vit.depth:
            x, _ = blocks_of(vit, x)
        return layers.layer_norm("norm", epsilon=vit.epsilon, **dtypes)(x)
