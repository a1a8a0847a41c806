"""Representation learning research in pure JAX: methods are functions, experiments are recipes.

A method is a pure function or a Flax module in the room of its field; each room's docstring says
what is there and which paper each is.

* `rml.losses`: InfoNCE, NT-Xent, SupCon, CLIP, SigLIP, triplet and more, streaming over pairs.
* `rml.contrastive`: views and towers, pairs of text. `rml.hydra`: pairs of classes in gated
  subspaces. `rml.fewshot`: few-shot methods and clustering. `rml.attention`: random-feature
  attention, approximations of softmax, caches and memories of long texts. `rml.kernels`: deep
  kernel machines. `rml.retrieval`: vectors of texts and search. `rml.sparsity`: sparse activations,
  edits of a few attention heads. `rml.merging`: models merged in the space of parameters.
  `rml.distillation`: students and how much they heed a teacher.
* `rml.models`: encoders, heads, text models, pretrained weights. `rml.data`: sources, batches and
  augmentation. `rml.training`: the engine. `rml.evaluation`: metrics, probes, significance.
* `rml.ops`: the array mathematics below them all.
* `rml.load`: the encoder of a run as a function of images or texts, an `rml.Encoder`.

Nothing is imported until a room is. A loss with its gradient:

    import jax
    from rml.losses import nt_xent

    a, b = jax.random.normal(jax.random.key(0), (2, 256, 128))  # two views' projections
    loss, gradient = jax.value_and_grad(nt_xent)(a, b, temperature=0.1)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rml.encoder import Encoder, ImageEmbedder, load

__all__ = ["Encoder", "ImageEmbedder", "load"]


def __getattr__(name: str) -> Any:
    """Imports what `__all__` names when it is first used."""
    if name in __all__:
        from rml import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
