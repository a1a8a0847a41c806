"""Ablations of the recipe on LoFiT: fewer training texts, and edits read on other tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool

from experiments.common.small_lm import differences
from experiments.sparsity.lofit_arms import tuned_heads, tuned_weights
from experiments.sparsity.lofit_tasks import Bed, Model, Texts, hits, read, take
from rml.models import HeadEdits


def fewer(bed: Bed, count: int) -> Bed:
    """The bed with its first training texts alone, which repeat so that steps stay as many.

    Args:
      bed: A sample, whose first pass over its texts has each once.
      count: Number of texts, at most those of a pass.
    """
    rows = np.resize(np.arange(count), bed.train.label.shape)
    texts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), bed.train)
    return bed._replace(train=take(texts, rows))


def of_sizes(
    config: Any, model: Model, beds: Mapping[int, Bed], held: dict[str, Texts], first: Array,
    heads: Sequence[Bool[Array, "layers heads"]],
) -> dict[str, float]:  # fmt: skip
    """Accuracies of LoFiT and of adapters of rank 8 by the number of training texts.

    Args:
      config: The run's config.
      model: The frozen model.
      beds: Samples of the task, by their number of texts.
      held: Validation and test texts.
      first: Offsets before training.
      heads: The heads of each, which step 1 chose on the same texts.
    """
    metrics: dict[str, float] = {}
    for (count, bed), own in zip(beds.items(), heads, strict=True):
        arms = {
            "lofit": tuned_heads(config, model, bed, held, first, own),
            "lora_8": tuned_weights(config, model, bed, held, "lora_8"),
        }
        metrics |= {f"accuracy_{name}_of_{count}": arm.right.mean() for name, arm in arms.items()}
        for name, arm in arms.items():
            metrics[f"rate_{name}_of_{count}"] = arm.rate
            metrics[f"rate_at_edge_{name}_of_{count}"] = arm.at_edge
        lost = arms["lora_8"].right.astype(float) - arms["lofit"].right
        metrics |= differences({f"deficit_to_lora_of_{count}": lost})
    return metrics


def transferred(
    config: Any, model: Model, beds: Mapping[str, Sequence[Bed]], edits: HeadEdits
) -> dict[str, float]:
    """What edits tuned on the first task gain over the frozen model on test texts of the others.

    As many texts of each are read as of validation. Classes are named by the other task's own
    directions, which the frozen model made.
    """
    metrics: dict[str, float] = {}
    for task in config.data.others:
        rng = np.random.default_rng(config.seed)
        texts = read(config, model, task, "test", config.sample.validation, rng)
        own = beds[task][0].prototypes
        edited, frozen = (hits(model, texts, own, edits=e).astype(float) for e in (edits, None))
        metrics |= differences({f"transfer_{task}": edited - frozen})
    return metrics
