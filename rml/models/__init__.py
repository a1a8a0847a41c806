"""Encoders, text models and heads as Flax linen modules with logical axis names.

An encoder is called `encoder(x, *, train=False)` on NHWC float images and returns features [b, d],
`MLP`, `ConvNet`, `ResNet`, `ViT` and `Mixer` with `stages=True` the `Stages` of them too, of which
`Exits` make logits while they are trained;
a text model reads tokens [b, t] and a mask, see `TextEncoder`. What attends in them is a function,
`rml.models.attention.Attend`, one for all layers or one for each; a decoder keeps what it has read
in a `Cache`: all of it, a window with the first tokens, or eight bits of each number, or
the blocks that each head may still read (`sharded_cache`), in all layers or in some
(`hybrid_cache`). Its activations may have `Thresholds`,
and a `Probe` measures every block; by `live_rows` it adds tokens reading no channel of an MLP whose
gate is zero.

`Terminator` encodes square images, and sequences [b, t, c], without residual sums: slow nets
(`Magnet`, `LocalMagnet`) write its kernels, which `slow_neural_loss` brings together;
`weight_norms` is a further penalty of the public code. Zhang, HyperZ·Z·W Operator Connects
Slow-Fast Networks for Full Context Interaction, arXiv:2401.17948.

`map_width` and `map_depth` make of a transformer's parameters those of another size, or of other
units: every kernel K becomes AᵀKB, every layer a sum of layers.

`init_lora` and `apply_lora` adapt a model from outside: Hu et al., arXiv:2106.09685.
`generate_together` decodes by several decoders in step, whose logits a function combines.

`Router` gives every input weights of experts, by `route`; `learn_router` trains it on which task
features belong to.

`train_word2vec` is Mikolov et al., arXiv:1310.4546, skip-gram with negative samples.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from rml.models import attention
from rml.models.adapters import apply_lora, init_lora
from rml.models.bert import Bert
from rml.models.block_hooks import Activations, Probe, Thresholds
from rml.models.caches import Cache
from rml.models.clip import ClipText
from rml.models.conv import Conv, conv2d
from rml.models.convnet import ConvNet
from rml.models.depth import map_depth
from rml.models.exits import ConvExit, Exits, TokenExit
from rml.models.generate import generate, read_in_chunks
from rml.models.generate_together import Member, generate_together
from rml.models.heads import Classifier, PredictionHead, ProjectionHead
from rml.models.hybrid_cache import HybridCache, hybrid_cache
from rml.models.implicit_kernel import LocalMagnet, Magnet, coordinate_grid
from rml.models.layers import Norm, Stages, module_options, unknown
from rml.models.layouts import Sizes, transformer_sizes
from rml.models.live_rows import LiveRows, live_rows
from rml.models.llama import Llama
from rml.models.masked_lm import MaskedLMHead
from rml.models.mixer import Mixer, MixerB, MixerS
from rml.models.mlp import MLP
from rml.models.modernbert import ModernBert
from rml.models.resnet import ResNet, ResNet18, ResNet34, ResNet50
from rml.models.router import LearnedRouter, Router, learn_router, route
from rml.models.self_attention import HeadEdits
from rml.models.sharded_cache import ShardedCache, keeps_left, sharded_cache
from rml.models.terminator import Terminator, slow_neural_loss, weight_norms
from rml.models.text_encoder import TextEncoder
from rml.models.transformer import States, projections
from rml.models.vit import ViT, ViTB, ViTL, ViTS, ViTTi
from rml.models.width import WidthMap, map_width, of_heads
from rml.models.word2vec import train_word2vec

__all__ = [
    "ENCODERS",
    "MLP",
    "Activations",
    "Bert",
    "Cache",
    "Classifier",
    "ClipText",
    "Conv",
    "ConvExit",
    "ConvNet",
    "Exits",
    "HeadEdits",
    "HybridCache",
    "LearnedRouter",
    "LiveRows",
    "Llama",
    "LocalMagnet",
    "Magnet",
    "MaskedLMHead",
    "Member",
    "Mixer",
    "MixerB",
    "MixerS",
    "ModernBert",
    "Norm",
    "PredictionHead",
    "Probe",
    "ProjectionHead",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "Router",
    "ShardedCache",
    "Sizes",
    "Stages",
    "States",
    "Terminator",
    "TextEncoder",
    "Thresholds",
    "TokenExit",
    "ViT",
    "ViTB",
    "ViTL",
    "ViTS",
    "ViTTi",
    "WidthMap",
    "apply_lora",
    "attention",
    "build",
    "conv2d",
    "coordinate_grid",
    "generate",
    "generate_together",
    "hybrid_cache",
    "init_lora",
    "keeps_left",
    "learn_router",
    "live_rows",
    "map_depth",
    "map_width",
    "of_heads",
    "projections",
    "read_in_chunks",
    "route",
    "sharded_cache",
    "slow_neural_loss",
    "train_word2vec",
    "transformer_sizes",
    "weight_norms",
]

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "vit_ti": ViTTi,
    "vit_s": ViTS,
    "vit_b": ViTB,
    "vit_l": ViTL,
    "mixer_s": MixerS,
    "mixer_b": MixerB,
}


def build(name: str, **options: Any) -> nn.Module:
    """Builds the encoder that a config names.

    Args:
      name: a key of `ENCODERS`, such as "convnet" or "vit_s".
      **options: attributes of the module; `dtype` and `param_dtype` may be strings such as
        "bfloat16".

    Returns:
      The module, unbound.

    Raises:
      ValueError: the name or an option is unknown; the message gives the nearest valid one.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    constructor = ENCODERS[name]
    module = constructor.func if isinstance(constructor, functools.partial) else constructor
    return constructor(**module_options(name, module, options))
