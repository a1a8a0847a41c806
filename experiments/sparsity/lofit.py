"""LoFiT: a few attention heads of a frozen model tuned by offsets, beside other ways of tuning.

Yin et al., LoFiT: Localized Fine-tuning on LLM Representations, arXiv:2406.01563. A sentence
encoder names the classes of short texts by directions of class means, which stay as they are; a
decoder names them by words after a prompt. The loss is cross-entropy, or the paper's preference
loss (DPO). Heads are ranked by step 1 on samples of texts of several tasks; on the first task the
best heads get offsets. Beside them stand heads at random, of other tasks, by the gradient without
step 1, by the norm of offsets of all heads and by probes; heads shifted without training (ITI);
adapters of rank 1 and 8, biases, scales and offsets of MLPs (RED), and everything. Each tries
equally many rates on validation texts. Ablations train on fewer texts, and read the edits on the
other tasks. The unit of intervals is a test text. Models, texts, sizes and margins are this
repository's; the paper tunes decoders of 7 and 13 billion parameters to answer questions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ranges import ABOVE_0, AT_LEAST_0, COUNT, SIZE, Range
from experiments.sparsity import lofit_figures
from experiments.sparsity.lofit_ablations import fewer, of_sizes, transferred
from experiments.sparsity.lofit_arms import (
    WEIGHTS,
    Arm,
    probed,
    scaled_heads,
    shifted,
    slopes,
    tuned_heads,
    tuned_weights,
)
from experiments.sparsity.lofit_measures import (
    LOCAL,
    LOCAL_SHARE,
    agreement,
    compared,
    costs,
)
from experiments.sparsity.lofit_tasks import by_words, hits, load_model, read, read_beds
from rml.errors import UserError, unknown
from rml.ops import trees
from rml.sparsity import head_scores, init_edits, save_edits, select_heads
from rml.training import Claim, Progress, RunDirectory
from rml.training.durable import replacing

SOURCE = "arXiv:2406.01563; model, texts, sizes and margins are this repository's"
CLAIMS = (
    Claim("A tenth of all heads, chosen by step 1, is right as often as adapters of rank 8",
          "deficit_to_lora", "<=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="deficit_to_lora_frozen",
          says="LoRA, with {numbers_ratio:.0f} times the trained numbers, changes accuracy by "
          "{mean:+.1p} points over LoFiT's tenth of the heads, to {accuracy_lora_8:.1%}"),
    Claim("A tenth of all heads, chosen by step 1, is right on a point more than random ones",
          "gain_over_random", ">=", 0.01, SOURCE,
          stated="2026-11-27", null="gain_over_random_draw",
          says="Choosing the heads by step 1 changes accuracy by {mean:+.1p} points over heads at "
          "random ({accuracy_random:.1%})"),
    Claim("It is right on half a point more than the heads of other tasks",
          "gain_over_other", ">=", 0.005, SOURCE,
          stated="2026-11-27", null="gain_over_other_random",
          says="A task's own heads change accuracy by {mean:+.1p} points over those of other tasks "
          "({accuracy_other:.1%})"),
    Claim("Offsets that are trained are two points above heads that are shifted without training "
          "(ITI)", "gain_over_iti", ">=", 0.02, f"{SOURCE}; worded anew after the first "
          "measurement: so are those of heads drawn at random",
          stated="2026-11-30", null="gain_over_iti_frozen",
          says="Training the offsets changes accuracy by {mean:+.1p} points over shifts without "
          "training (ITI, {accuracy_iti:.1%})"),
)  # fmt: skip
RANGES = {
    **dict.fromkeys(("sample.texts", "sample.validation"), SIZE),
    "sample.anchors": COUNT, "loss.beta": AT_LEAST_0,
    "sample.test": Range(2, whole=True), "sample.length": Range(3, whole=True),
    "head.scale": ABOVE_0, "timing.repeats": Range(2, whole=True),
}  # fmt: skip
CAPTIONS = lofit_figures.CAPTIONS
PICTURE = "numbers.png"
NAMINGS = ("means", "words")
EDITS = "edits.safetensors"
"""File of the run with the edits of a tenth of all heads."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Ranks heads of every task, tunes the first task by every way, compares, saves, draws."""
    check(config)
    progress, model = Progress(), load_model(config)
    beds = read_beds(config, model)
    key, options = jax.random.key(config.seed), config.train
    first: Any = init_edits(key, model.encoder.module, std=options.std)
    bed, rng = beds[config.data.name][0], np.random.default_rng(config.seed)
    smaller = {count: fewer(bed, count) for count in config.sizes}
    samples = [one for own in beds.values() for one in own]
    changes = scaled_heads(
        model.encoder, model.params, trees.stack_trees([*samples, *smaller.values()]),
        first.scale, options.rate, options.penalty,
    )  # fmt: skip
    every = jax.vmap(head_scores)(changes)
    scores = every[: len(samples)].reshape(len(beds), -1, *changes.shape[1:3])
    held = {
        part: read(config, model, config.data.name, part, config.sample[part], rng)
        for part in ("validation", "test")
    }
    frozen = hits(model, held["test"], bed.prototypes)
    arms: dict[str, Arm] = {}

    def keep(name: str, arm: Arm) -> None:
        arms[name] = arm._replace(params=None)
        progress.note(f"{name}: {arm.right.mean():.1%} at {arm.rate:g}")

    def tune(name: str, ranking: Any, share: float = LOCAL_SHARE) -> None:
        heads = select_heads(ranking, count=counted(share, ranking.size))
        keep(name, tuned_heads(config, model, bed, held, first.offset, heads))

    for share in config.shares:
        tune(f"lofit_{share:g}", scores[0, 0], share)
    rankings = {f"random_{at}": jnp.asarray(rng.random(scores.shape[2:]))
                for at in range(config.draws)}  # fmt: skip
    others = {f"other_{name}": scores[1 + at, 0] for at, name in enumerate(config.data.others)}
    probes, way = probed(model, bed, config.sample.texts)
    gradient = slopes(model.encoder, model.params, bed)
    by_bias = head_scores(arms["lofit_1"].edits.offset)
    ranked = {"gradient": head_scores(gradient), "bias_norm": by_bias, "probes": probes}
    for name, ranking in (rankings | others | ranked).items():
        tune(name, ranking)
    tenth = functools.partial(select_heads, count=counted(LOCAL_SHARE, probes.size))
    keep("iti", shifted(config, model, bed, held, tenth(probes), way))
    for kind in WEIGHTS:
        if kind not in config.rates:
            continue
        keep(kind, tuned_weights(config, model, bed, held, kind))
    chosen = {name: [np.asarray(tenth(one)) for one in own]
              for name, own in zip(beds, scores, strict=True)}  # fmt: skip
    drawn = [np.asarray(tenth(one)) for one in rankings.values()]
    metrics = compared(arms, frozen, list(others)) | agreement(chosen, drawn)
    edits = arms[LOCAL].edits
    metrics |= costs(config, model, bed, edits) | transferred(config, model, beds, edits)
    few = [tenth(own) for own in every[len(samples) :]]
    metrics |= of_sizes(config, model, smaller, held, first.offset, few)
    with replacing(run.path / EDITS) as place:
        save_edits(place, edits)
    metrics["edits_bytes"] = (run.path / EDITS).stat().st_size
    lofit_figures.draw(run, dict(zip(beds, np.asarray(scores[:, 0]), strict=True)), arms, frozen)
    return {name: float(value) for name, value in metrics.items()}


def tries(config: Any) -> dict[str, int]:
    """How many rates or strengths validation texts choose from, by arm.

    Heads of the largest norms are chosen by offsets of all heads, whose rate counts with theirs.
    """
    shares = [f"lofit_{share:g}" for share in config.shares]
    drawn = [f"random_{at}" for at in range(config.draws)]
    others = [f"other_{name}" for name in config.data.others]
    found = dict.fromkeys(
        (*shares, *drawn, *others, "gradient", "bias_norm", "probes"), len(config.rates.offset)
    )
    found["bias_norm"] += found["lofit_1"]
    found |= {kind: len(config.rates[kind]) for kind in ("iti", *WEIGHTS) if kind in config.rates}
    for size in config.sizes:
        found |= {
            f"lofit_of_{size}": len(config.rates.offset),
            f"lora_8_of_{size}": len(config.rates.lora_8),
        }
    return found


def counted(share: float, heads: int) -> int:
    """The number of heads of a share, at least one."""
    return max(1, round(share * heads))


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    shares = tuple(config.shares)
    if (
        shares[1:2] != (LOCAL_SHARE,)
        or shares[-1] != 1
        or sorted({*shares, 0.0})[1:] != list(shares)
    ):
        raise UserError(
            f"shares is {config.shares}, expected to ascend, the second {LOCAL_SHARE}, the last 1"
        )
    if config.head.names not in NAMINGS:
        raise unknown("head.names", config.head.names, NAMINGS)
    if (config.sample.anchors > 0) == by_words(config):
        wanted = "0, since words name classes" if by_words(config) else "texts of class means"
        raise UserError(f"sample.anchors is {config.sample.anchors}, expected {wanted}")
    for task in (config.data.name, *config.data.others) if by_words(config) else ():
        prompt = config.data.prompts.get(task, "")
        if prompt.count("{}") != 1:
            raise UserError(
                f"data.prompts.{task} is {prompt!r}, expected words with one {{}} for the text"
            )
    if missing := {"offset", "iti", "lora_8", "biases"} - set(config.rates):
        raise UserError(f"rates has no {min(missing)!r}, which claims compare")
    if len({len(rates) for rates in config.rates.values()}) != 1:
        raise UserError(f"rates is {config.rates}, expected equally many tries of each")
    if not config.data.others or config.data.name in config.data.others:
        raise UserError(f"data.others is {config.data.others}, expected tasks beside data.name")
    sizes, texts = list(config.sizes), config.sample.texts
    if sizes != sorted({*sizes}) or not all(1 <= size <= texts for size in sizes):
        raise UserError(f"sizes is {config.sizes}, expected to ascend from 1 to {texts} at most")
    if config.sample.draws < 2 or config.draws < 2:
        raise UserError(
            f"sample.draws is {config.sample.draws} and draws {config.draws}, expected at least 2"
        )
