"""Entries of layouts for the layers that many architectures are made of."""

from collections.abc import Sequence

from rml.models.pretrained.tensors import CONVOLUTION, Entry


def affine(path: str, name: str, inputs: int = 1, *, bias: bool = True) -> tuple[Entry, ...]:
    """Makes entries of a Dense layer: "NAME.weight" and, where it has one, "NAME.bias"."""
    kernel = Entry(f"{path}/kernel", f"{name}.weight", inputs)
    return (kernel, Entry(f"{path}/bias", f"{name}.bias", 0)) if bias else (kernel,)


def norm(path: str, name: str, *, bias: bool = True) -> tuple[Entry, ...]:
    """Makes entries of a LayerNorm or RMSNorm: "NAME.weight" and, if it has one, "NAME.bias"."""
    scale = Entry(f"{path}/scale", f"{name}.weight", 0)
    return (scale, Entry(f"{path}/bias", f"{name}.bias", 0)) if bias else (scale,)


def convolution(path: str, name: str, *, bias: bool = False) -> tuple[Entry, ...]:
    """Makes entries of a convolution: "NAME.weight" and, where it has one, "NAME.bias"."""
    kernel = Entry(f"{path}/kernel", f"{name}.weight", CONVOLUTION)
    return (kernel, Entry(f"{path}/bias", f"{name}.bias", 0)) if bias else (kernel,)


def batch_norm(path: str, name: str) -> tuple[Entry, ...]:
    """Makes entries of a `rml.models.Norm` over the batch, its running statistics included."""
    return (
        *norm(f"{path}/bn", name),
        Entry(f"{path}/bn/mean", f"{name}.running_mean", 0, collection="batch_stats"),
        Entry(f"{path}/bn/var", f"{name}.running_var", 0, collection="batch_stats"),
    )


def vit_block(
    *, norms: tuple[str, str], qkv: Sequence[str], out: str, mlp: tuple[str, str]
) -> tuple[Entry, ...]:
    """Makes entries of a block of `rml.models.ViT`.

    Args:
      norms: Names of the norm before attention and of that before the MLP.
      qkv: Names of the projections to queries, keys and values, or one name of all three; with the
        dot or underscore before "weight" and "bias".
      out: Name of the projection back.
      mlp: Names of the two layers of the MLP.

    Returns:
      The entries.
    """
    parts = [None] if len(qkv) == 1 else range(len(qkv))
    return (
        *norm("norm1", norms[0]),
        *(
            Entry(f"qkv/{ours}", f"{name}{theirs}", inputs, part)
            for name, part in zip(qkv, parts, strict=True)
            for ours, theirs, inputs in (("kernel", "weight", 1), ("bias", "bias", 0))
        ),
        *affine("out", out, 2),
        *norm("norm2", norms[1]),
        *affine("mlp_in", mlp[0]),
        *affine("mlp_out", mlp[1]),
    )
