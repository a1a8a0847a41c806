"""Which axis of each parameter of a transformer belongs to what; sizes read from parameters."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from rml.errors import UserError
from rml.ops.trees import STACKED


class Sizes(NamedTuple):
    """Sizes of a transformer, as its parameters have them.

    Attributes:
      width: Width of a token.
      heads: Number of query heads.
      kv_heads: Number of heads of keys and values.
      head_width: Width of a head.
      mlp: Hidden width of the MLP.
      depth: Number of blocks.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    depth: int

    def times(self, *, width: int = 1, depth: int = 1) -> "Sizes":
        """Returns sizes of a larger model with heads of the same width."""
        return Sizes(
            self.width * width, self.heads * width, self.kv_heads * width, self.head_width,
            self.mlp * width, self.depth * depth,
        )  # fmt: skip


SPACES = {
    "stream": "what the residual sum carries",
    "stream.embed": "what tables, patches, class token and positions write",
    "stream.in": "what a block reads",
    "stream.branch": "what attention adds to the residual sum",
    "stream.mid": "the sum after that, which the MLP reads",
    "stream.out": "what the MLP adds",
    "stream.after": "the sum after that, which a norm behind it writes",
    "stream.last": "what the final norm writes and a head reads",
    "query": "queries of all heads, side by side",
    "key": "keys likewise",
    "value": "values likewise",
    "heads": "outputs of all query heads, side by side, which the projection back reads",
    "mlp": "hidden units of the MLP, shared by its gate",
}
"""What units there are; a part of the stream that has no map of its own takes the stream's."""

# Axes of each leaf, by its path: "<" one that reads a space, ">" one that writes it, "*" two axes
# (heads and their widths) that are one, "-" one that stays.
_MLP = {
    "mlp_in/kernel": "<stream.mid >mlp", "mlp_in/bias": ">mlp",
    "mlp_out/kernel": "<mlp >stream.out", "mlp_out/bias": ">stream.out",
}  # fmt: skip
_ATTENTION = {
    **{f"attention/{name}/kernel": f"<stream.in >{name}*" for name in ("query", "key", "value")},
    **{f"attention/{name}/bias": f">{name}*" for name in ("query", "key", "value")},
    "attention/out/kernel": "<heads* >stream.branch", "attention/out/bias": ">stream.branch",
}  # fmt: skip


def _norm(name: str, space: str, side: str = ">") -> dict[str, str]:
    return {f"{name}/{leaf}": f"{side}{space}" for leaf in ("scale", "bias")}


BLOCKS = {
    "vit": {
        # Queries, keys and values lie in one leaf, see `_fused`.
        "qkv/kernel": "<stream.in - -", "qkv/bias": "- - -",
        "out/kernel": "<heads* >stream.branch", "out/bias": ">stream.branch",
        **_norm("norm1", "stream.in"), **_norm("norm2", "stream.mid"), **_MLP,
    },
    "bert": {
        **_ATTENTION, **_norm("norm1", "stream.mid"), **_norm("norm2", "stream.after"), **_MLP,
    },
    "llama": {
        **_ATTENTION, **_norm("norm1", "stream.in"), **_norm("norm2", "stream.mid"), **_MLP,
        "gate/kernel": "<stream.mid >mlp", "gate/bias": ">mlp",
    },
}  # fmt: skip
ENDS = {
    "vit": {
        "patches/kernel": "- - - >stream.embed", "patches/bias": ">stream.embed",
        "cls": "- - >stream.embed", "positions": "- - >stream.embed",
        **_norm("norm0", "stream.embed"), **_norm("norm", "stream.last"),
        "projection/kernel": "<stream.last -", "head/kernel": "<stream.last -", "head/bias": "-",
    },
    "bert": {
        **{f"{name}/embedding": "- >stream.embed" for name in ("tokens", "positions", "types")},
        **_norm("norm", "stream.embed"),
    },
    "llama": {
        "tokens/embedding": "- >stream.embed", **_norm("norm", "stream.last"),
        "head/kernel": "<stream.last -",
    },
    # Logits are products with the table of tokens: the table is mapped as what is written, so that
    # the norm before it is mapped as what reads.
    "tied": {"tokens/embedding": "- >stream.embed", **_norm("norm", "stream.last", "<")},
    # Its hidden units are multiplied with the table of tokens, so that they are those of the table.
    "masked_lm": {
        "dense/kernel": "<stream.last >stream.embed", "dense/bias": ">stream.embed",
        **_norm("norm", "stream.embed", "<"), "bias": "-",
    },
    "classifier": {"out/kernel": "<stream.last -", "out/bias": "-"},
}  # fmt: skip


def transformer_sizes(params: PyTree) -> Sizes:
    """Reads the sizes of the one transformer in a tree of parameters.

    Raises:
      UserError: There is none, or more than one.
    """
    found = list(transformers(params))
    if len(found) != 1:
        raise UserError(f"expected one ViT, Bert or Llama among the parameters, got {len(found)}")
    tree = found[0][1]
    first = blocks_of(tree)[0]
    stacked = STACKED in tree
    own = jax.tree.map(lambda leaf: leaf[0] if stacked else leaf, tree[first])
    depth = jax.tree.leaves(tree[STACKED])[0].shape[0] if stacked else len(blocks_of(tree))
    width, mlp = own["mlp_in"]["kernel"].shape
    if "qkv" in own:
        _, _, heads, head_width = own["qkv"]["kernel"].shape
        return Sizes(width, heads, heads, head_width, mlp, depth)
    _, heads, head_width = own["attention"]["query"]["kernel"].shape
    return Sizes(width, heads, own["attention"]["key"]["kernel"].shape[1], head_width, mlp, depth)


def transformers(params: PyTree, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every subtree that has blocks, with its path."""
    if not isinstance(params, Mapping):
        return
    if blocks_of(params):
        yield path, params
        return
    for name, value in params.items():
        yield from transformers(value, f"{path}{name}/")


def blocks_of(tree: Mapping[str, Any]) -> list[str]:
    """Lists names of the blocks of a transformer, in their order; of scanned ones, one name."""
    if STACKED in tree:
        return [STACKED]
    numbered = [name for name in tree if name.startswith("block") and name[5:].isdigit()]
    return sorted(numbered, key=lambda name: int(name[5:]))


def kind_of(tree: Mapping[str, Any]) -> str | None:
    """Finds the key of `ENDS` that a tree's leaves are in; None where it holds such trees."""
    if blocks_of(tree):
        if "patches" in tree:
            return "vit"
        if "types" in tree:
            return "bert"
        return "llama" if "head" in tree else "tied"
    if {"dense", "norm", "bias"} <= set(tree):
        return "masked_lm"
    return "classifier" if set(tree) == {"out"} else None
