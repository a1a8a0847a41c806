"""What fusing costs: a decoding step with weights chosen, and training of what is tuned."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.common import small_lm
from experiments.common.timing import median_ratio
from experiments.merging.bed import take
from experiments.merging.logits_models import EXPERT, LORA, TUNED, Models, problem, sized
from experiments.merging.logits_readings import Modules, grid, modules
from experiments.merging.multilevel_problems import step_flops
from rml.evaluation import program_flops
from rml.merging import fuse_decode
from rml.models import Llama, Member

FINER = 10
"""How many times as many weights the null tries at a token."""
OPERATIONS = 12
"""Operations on each logit for each weight that `choose_alpha` tries: the difference is scaled (1)
and added to the log-probability (1), ψ is taken (maximum, difference, exponential and sum: 4) and
subtracted (1), the fused probability is its exponential (1), and both means of the moved logits are
a product and a sum each (4)."""
VOCABULARY = 32_000
"""A large vocabulary, LLaMA's."""


def choosing_cost(
    config: Any, models: Models, windows: Int[np.ndarray, "m t"]
) -> dict[str, float]:  # fmt: skip
    """What choosing the weight adds to a decoding step, as a share of one with weight 1.

    The expert is one. Texts are written with and without in turn, and ratios of pairs have a
    median; the null tries ten times as many weights.

    Args:
      config: The run's config.
      models: All models.
      windows: Tokens, of which those of `timing.texts` first windows are continued.
    """
    options, points = config.timing, grid(config)
    tokens = jnp.asarray(windows[: options.texts, : options.prompt])
    one = take(models.experts, np.array([0]))
    write = functools.partial(
        _written, modules(config), (models.large, one, models.small), tokens, options.steps
    )
    found = {}
    for end, finer in (("", 1), ("_finer", FINER)):
        choose = weights_tried(points, finer)
        ratio = median_ratio(
            functools.partial(write, tuple(choose.items())), lambda: write((("alpha", 1.0),)),
            repeats=options.repeats,
        )  # fmt: skip
        found[f"choosing_cost{end}"] = ratio - 1
    return found


def choosing_flops(config: Any) -> dict[str, float]:
    """Operations of choosing one expert's weight over the products of the step that it is part of.

    Both are counted: those of `choose_alpha` by its formula, points times logits times
    `OPERATIONS`, and the products of the large model, the small one and the expert for one token
    without a context. A second value has models of the same sizes with a large vocabulary.
    """
    found = {}
    for vocabulary, end in ((config.text.vocabulary, ""), (VOCABULARY, f"_{VOCABULARY}")):
        large, small = (_token_flops(own, vocabulary) for own in modules(config))
        choosing = OPERATIONS * config.alpha.points * vocabulary
        found[f"choosing_flops{end}"] = choosing / (large + 2 * small)
    return found


def _token_flops(module: Llama, vocabulary: int) -> float:
    """Floating-point operations of a decoder's products for one token, without computing any."""
    module, token = module.clone(vocabulary=vocabulary), jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), token))["params"]
    return program_flops(lambda own: small_lm.logits_of(module, own, token)[0], params)


def weights_tried(points: Float[np.ndarray, " p"], finer: int) -> dict[str, Any]:
    """Options of `fuse_decode` that choose among weights `finer` times as dense as `points`."""
    return {"alpha": None, "high": points[-1], "step": points[1] / finer}


def training_share(config: Any, text: small_lm.Text, models: Models) -> dict[str, float]:
    """FLOPs of a step of an expert, and of an adapter, over those of the large model."""
    rate = config.tuning.rates[0]
    flops = {
        kind: step_flops(problem(sized(config, kind, rate), kind, text, start))
        for kind, start in ((EXPERT, models.small), (TUNED, models.large), (LORA, models.large))
    }
    return {
        "training_share": flops[EXPERT] / flops[TUNED],
        "training_share_lora": flops[LORA] / flops[TUNED],
    }


def _written(
    modules: Modules, params: Any, tokens: Array, steps: int, options: tuple[tuple[str, Any], ...]
) -> Array:
    large, experts, small = params
    return fuse_decode(
        Member(modules[0], {"params": large}), Member(modules[1], {"params": experts}, True),
        Member(modules[1], {"params": small}), tokens, steps=steps, **dict(options),
    ).tokens  # fmt: skip
