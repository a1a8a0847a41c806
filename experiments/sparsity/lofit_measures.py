"""What the recipe on LoFiT compares: accuracies, which heads were chosen, and costs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import stats

from experiments.common.claims import with_bounds
from experiments.common.small_lm import differences
from experiments.common.timing import least_seconds, median_ratio
from experiments.sparsity.lofit_arms import WEIGHTS, Arm, adapted, optimizer, trainable
from experiments.sparsity.lofit_tasks import Bed, Encoder, Model, Texts, embed, task_loss
from rml.evaluation import program_flops
from rml.models import HeadEdits
from rml.ops import t_interval, trees
from rml.sparsity import fold

LOCAL_SHARE = 0.1
LOCAL = f"lofit_{LOCAL_SHARE:g}"
"""The arm that claims are about: a tenth of all heads."""


def compared(
    arms: Mapping[str, Arm], frozen: np.ndarray, others: Sequence[str]
) -> dict[str, float]:
    """Accuracies, numbers, rates, and what claims compare, with intervals over test texts.

    Args:
      arms: What each way of tuning made, by its name.
      frozen: Which test texts the frozen model names rightly.
      others: Names of the arms with heads of other tasks.
    """
    right = {name: arm.right.astype(float) for name, arm in arms.items()}
    right["frozen"] = frozen.astype(float)
    draws = sorted(name for name in right if name.startswith("random_"))
    right["random"] = np.mean([right[name] for name in draws], axis=0)
    right["other"] = np.mean([right[name] for name in others], axis=0)
    rest = np.mean([right[name] for name in draws[1:]], axis=0)
    own, whole, one = right[LOCAL], right["lofit_1"], right[draws[0]]
    pairs = {
        "gain_over_frozen": own - right["frozen"],
        "gain_over_random": own - right["random"],
        "gain_over_random_draw": one - rest,
        "gain_over_other": own - right["other"],
        "gain_over_other_random": one - right["other"],
        "gain_over_gradient": own - right["gradient"],
        "gain_over_gradient_random": one - right["gradient"],
        "gain_over_bias_norm": own - right["bias_norm"],
        "gain_over_probes": own - right["probes"],
        "deficit_to_lora": right["lora_8"] - own,
        "deficit_to_lora_frozen": right["lora_8"] - right["frozen"],
        "gain_over_iti": own - right["iti"],
        "gain_over_iti_frozen": right["frozen"] - right["iti"],
        "gain_of_all": whole - own,
        "gain_of_all_frozen": whole - right["frozen"],
    }
    if "red" in right:
        pairs["deficit_to_red"] = right["red"] - own
    metrics = {f"accuracy_{name}": x.mean() for name, x in right.items()}
    for name, arm in arms.items():
        metrics |= {f"numbers_{name}": arm.numbers, f"rate_{name}": arm.rate}
        metrics |= {f"validation_{name}": arm.validation, f"rate_at_edge_{name}": arm.at_edge}
    metrics["numbers_ratio"] = arms["lora_8"].numbers / arms[LOCAL].numbers
    metrics["numbers_ratio_biases"] = arms["lora_8"].numbers / arms["biases"].numbers
    least = min(arms[name].numbers for name in WEIGHTS if name in arms)
    metrics |= exact("numbers_ratio_least", least / arms[LOCAL].numbers)
    metrics |= exact("numbers_ratio_least_all", least / arms["lofit_1"].numbers)
    return metrics | differences(pairs)


def exact(name: str, count: float) -> dict[str, float]:
    """Makes a metric that is counted, not estimated: both ends of its interval are its value."""
    return with_bounds(name, (count, count, count))


def agreement(
    chosen: Mapping[str, Sequence[Bool[np.ndarray, "layers heads"]]],
    randomly: Sequence[Bool[np.ndarray, "layers heads"]],
) -> dict[str, float]:
    """How far the heads of one task agree over samples of texts, and those of two tasks.

    Args:
      chosen: Heads of each sample, equally many, by task.
      randomly: Several sets of as many heads, drawn at random.
    """

    def jaccard(pairs: Any) -> float:
        return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))

    within = [pair for own in chosen.values() for pair in combinations(own, 2)]
    between = [pair for a, b in combinations(chosen.values(), 2) for pair in product(a, b)]
    drawn = list(combinations(randomly, 2))
    # Samples exchanged between tasks: what was one task's is another's.
    rolled = [pair for a, b in combinations(chosen.values(), 2) for pair in zip(a, b, strict=True)]
    return {
        "overlap_p": overlap_p(within), "overlap_p_random": overlap_p(drawn),
        "jaccard_within": jaccard(within), "jaccard_between": jaccard(between),
        "own_heads": jaccard(within) - jaccard(between),
        "own_heads_exchanged": jaccard(rolled) - jaccard(between),
    }  # fmt: skip


def overlap_p(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The chance that sets drawn at random share in all as many heads as these pairs or more.

    Pairs are taken as independent, as those of three sets or more are only nearly.
    """
    total, law = 0, np.ones(1)
    for a, b in pairs:
        total += int((a & b).sum())
        each = stats.hypergeom(a.size, int(a.sum()), int(b.sum()))
        law = np.convolve(law, each.pmf(np.arange(int(a.sum()) + 1)))
    return float(law[total:].sum())


def costs(config: Any, model: Model, bed: Bed, edits: HeadEdits) -> dict[str, float]:
    """Seconds of a step and bytes of the optimiser's state over those of LoRA, and after folding.

    Steps are timed in pairs with LoRA's, and the interval of the geometric mean is over pairs.

    Args:
      config: The run's config.
      model: The frozen model.
      bed: The task, a batch of which is trained on, and read with edits and after folding.
      edits: Offsets of a tenth of all heads.
    """
    repeats, batch = config.timing.repeats, jax.tree.map(lambda x: x[0], bed.train)
    kinds = {kind: trainable(config, model.params, kind) for kind in ("lora_8", "biases", "full")}
    calls, state = {}, {}
    for kind, first in {"edits": HeadEdits(offset=edits.offset), **kinds}.items():
        rate = optimizer(1e-3, 10)
        state[kind] = trees.count_bytes(rate.init(first))
        calls[kind] = functools.partial(
            _step, model.encoder, model.params, first, bed.prototypes, batch, kind=kind
        )
    metrics: dict[str, float] = {}
    for name, kind in (("step_share", "edits"), ("step_share_full", "full")):
        pairs = paired_seconds(calls[kind], calls["lora_8"], repeats=repeats)
        metrics |= with_bounds(name, map(np.exp, t_interval(np.log(pairs))))
    module, variables = fold(model.encoder.module, {"params": model.params}, edits)
    folded = model.encoder._replace(module=module)
    read = _reader(batch)
    reads = {
        "frozen": read(model.encoder, model.params), "folded": read(folded, variables["params"]),
        "lora": read(model.encoder, model.params, kinds["lora_8"]),
    }  # fmt: skip
    times = {name: least_seconds(call, repeats=repeats) for name, call in reads.items()}
    flops = {name: program_flops(call) for name, call in reads.items()}
    apart = reads["folded"]() - read(model.encoder, model.params, None, edits)()
    for name, kind in (("", "edits"), ("_biases", "biases"), ("_full", "full")):
        metrics |= exact(f"state_share{name}", state[kind] / state["lora_8"])
    return metrics | {
        "folded_time": times["folded"] / times["frozen"],
        "lora_time": times["lora"] / times["frozen"],
        "folded_flops_added": flops["folded"] / flops["frozen"] - 1,
        "lora_flops_added": flops["lora"] / flops["frozen"] - 1,
        "folded_error": float(jnp.abs(apart).max()),
    }


def paired_seconds(
    first: Callable[[], Any], second: Callable[[], Any], *, repeats: int
) -> Float[np.ndarray, " pairs"]:
    """Times two calls in pairs, each time in the other order: the first's seconds over the other's.

    Args:
      first: What to time.
      second: What it is compared with.
      repeats: Number of pairs.
    """
    return np.array([
        median_ratio(first, second, repeats=1) if turn % 2 == 0
        else 1 / median_ratio(second, first, repeats=1)
        for turn in range(repeats)
    ])  # fmt: skip


def _reader(batch: Texts) -> Callable[..., Callable[[], Array]]:
    return lambda *given: functools.partial(_read, *given, batch=batch)


@functools.partial(jax.jit, static_argnames="encoder")
def _read(
    encoder: Encoder, params: Any, lora: Any = None, edits: Any = None, *, batch: Texts
) -> Array:
    """Vectors of a batch, by edits or by adapters that are not merged where there are some."""
    own = params if lora is None else adapted("lora", params, lora)
    return embed(encoder, own, edits, batch)


@functools.partial(jax.jit, static_argnames=("encoder", "kind"))
def _step(
    encoder: Encoder, params: Any, first: Any, prototypes: Array, batch: Texts, *, kind: str
) -> Any:
    """What was trained after one step."""

    def objective(own: Any) -> Array:
        whole, edits = (params, own) if kind == "edits" else (adapted(kind, params, own), None)
        return task_loss(encoder, whole, edits, batch, prototypes)

    rate = optimizer(1e-3, 10)
    updates, state = rate.update(jax.grad(objective)(first), rate.init(first), first)
    return jax.tree.map(jnp.add, first, updates), state
