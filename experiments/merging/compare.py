"""Methods of merging ranked on one bed of eight experts, under one budget.

Every way has the same validation images, with as many candidates that it may judge on them; what
is learned tries each of its rates. Beside accuracy stands what a way costs: floating-point
operations and seconds until the model is there, and bytes that are kept for it. Claims are those
of the papers of simple methods: TIES (Yadav et al., arXiv:2306.01708), DARE (Yu et al.,
arXiv:2311.03099) and AdaMerging (Yang et al., arXiv:2310.02575), beside task arithmetic (Ilharco
et al., arXiv:2212.04089). Models, data and margins are this repository's.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging import compare_figures
from experiments.merging.atlas_learning import Batch, scaled_vectors
from experiments.merging.bed import OF_BED, Bed, open_bed, subtract, take
from experiments.merging.concrete_masks import learned, masked_arithmetic
from experiments.merging.fishers import fishers_of
from experiments.merging.judging import Part, Reading, best, differences, halves, judged, read
from experiments.merging.ranking import (
    adamerged,
    drawn_batches,
    ensembled,
    on_their_own,
    scaled,
    weighted,
)
from experiments.merging.tasks import Images
from experiments.ranges import Range
from rml.data.augment import to_float
from rml.evaluation.costs import program_flops
from rml.merging import expected_mask, merge
from rml.ops import trees
from rml.training import Claim, Progress, RunDirectory

SOURCE = "model, data and margin are this repository's"
STATED = "2026-11-27"
CLAIMS = (
    Claim("TIES is above task arithmetic by 1 point of normalised accuracy",
          "ties_over_arithmetic", ">=", 0.01, f"arXiv:2306.01708; {SOURCE}", stated=STATED,
          null="average_over_arithmetic"),
    Claim("Nine entries of ten dropped, and the others rescaled, cost task arithmetic at most half "
          "a point", "dropped_lost", "<=", 0.005, f"arXiv:2311.03099; {SOURCE}", stated=STATED,
          null="unscaled_lost"),
    Claim("AdaMerging is above task arithmetic by 2 points", "adamerging_over_arithmetic", ">=",
          0.02, f"arXiv:2310.02575; {SOURCE}", stated=STATED, null="noise_over_arithmetic"),
)  # fmt: skip
PAIRS = {
    "ties_over_arithmetic": ("ties", "arithmetic"), "dare_over_arithmetic": ("dare", "arithmetic"),
    "average_over_arithmetic": ("average", "arithmetic"),
    "dropped_lost": ("arithmetic", "dropped"), "unscaled_lost": ("arithmetic", "unscaled"),
    "adamerging_over_arithmetic": ("adamerging", "arithmetic"),
    "noise_over_arithmetic": ("noise", "arithmetic"),
    "atlas_over_adamerging": ("atlas", "adamerging"),
    "ensemble_over_arithmetic": ("ensemble", "arithmetic"),
}  # fmt: skip
RANGES = {"search.tries": Range(2, whole=True), "dropped.rate": Range(0, 1, below=True)}
READS = OF_BED
CAPTIONS = compare_figures.CAPTIONS
PICTURE = "ranking.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains or opens the bed, merges in every way, reads test images, draws."""
    bed = open_bed(config, run)
    validation, test = judged(bed, "validation"), judged(bed, "test")
    found: dict[str, Reading] = {"base": read(bed, test, bed.base)}
    flops, seconds, forward = {"base": 0.0}, {"base": 0.0}, forward_flops(config, bed)
    for name, (way, passes) in ways(config, bed, validation).items():
        start = time.perf_counter()
        params = jax.block_until_ready(way())
        seconds[name] = time.perf_counter() - start
        flops[name] = passes * forward
        found[name] = read(bed, test, params)
        Progress().note(
            f"{name}: {100 * found[name].normalised.mean():.1f}% normalised, "
            f"{seconds[name]:.1f} s, {flops[name] / 1e9:.1f} GFLOP"
        )
    found["ensemble"] = ensembled(bed, bed.experts, test)
    flops["ensemble"] = seconds["ensemble"] = 0.0
    experts = [take(bed.experts, i) for i in range(len(bed.tasks))]
    found["experts"] = on_their_own(test, [read(bed, test, own) for own in experts])
    metrics = differences("accuracy", {name: [own] for name, own in found.items()}, PAIRS)
    copy = trees.count_bytes(bed.base)
    for name in compare_figures.NAMES:
        metrics |= {
            f"gflop_{name}": flops[name] / 1e9, f"seconds_{name}": seconds[name],
            f"bytes_{name}": copy * (len(bed.tasks) if name == "ensemble" else 1),
        }  # fmt: skip
    compare_figures.draw(run, list(bed.tasks), found, metrics)
    return {name: float(value) for name, value in metrics.items()}


def ways(config: Any, bed: Bed, validation: Part) -> dict[str, tuple[Callable[[], Any], float]]:
    """Each way to one model, and how many passes of one image it takes forward.

    A step of learning, or a slope of a Fisher, counts three passes of each of its images.
    """
    count = len(bed.tasks)
    search = config.search.tries * len(validation.weights)
    train = [own.train for own in bed.tasks.values()]
    slopes = 3 * count * config.fisher.examples * config.fisher.classes

    @functools.cache
    def arithmetic() -> tuple[Any, float]:
        return scaled(config, bed, "task_arithmetic", validation)

    def rates(options: Any, tried: Any, judged_on: float) -> float:
        return len(tried) * (3 * options.steps * options.batch_size * count + judged_on)

    def fisher() -> Any:
        own = fishers_of(bed, bed.experts, bed.heads, train, **config.fisher.to_dict())
        return weighted(config, bed, bed.experts, own, validation)

    def dropped(factor: float) -> Any:
        return merge("dare", bed.base, bed.experts, scale=factor * arithmetic()[1],
                     rate=config.dropped.rate, key=jax.random.key(config.seed))  # fmt: skip

    masks, adamerging, atlas = config.mask, config.methods.adamerging, config.addition
    whole = len(validation.weights)
    return {
        "average": (lambda: merge("average", bed.base, bed.experts), 0.0),
        "weights": (lambda: weighted(config, bed, bed.experts, None, validation), search),
        "fisher": (fisher, search + slopes),
        "arithmetic": (lambda: arithmetic()[0], search),
        "ties": (lambda: scaled(config, bed, "ties", validation)[0], search),
        "dare": (lambda: scaled(config, bed, "dare", validation)[0], search),
        "dropped": (lambda: dropped(1.0), 0.0),
        "unscaled": (lambda: dropped(1 - config.dropped.rate), 0.0),
        "concrete": (lambda: concrete(config, bed, validation),
                     rates(masks, masks.learning_rates, whole)),
        "adamerging": (lambda: adamerged(config, bed, validation),
                       rates(adamerging, adamerging.learning_rates, whole)),
        "noise": (lambda: adamerged(config, bed, validation, unlabelled=noise(config, validation)),
                  rates(adamerging, adamerging.learning_rates, whole)),
        "atlas": (lambda: labelled(config, bed, validation), rates(atlas, atlas.rates, whole / 2)),
    }  # fmt: skip


def concrete(config: Any, bed: Bed, validation: Part) -> Any:
    """Task arithmetic behind a mask that is learned from validation images without labels."""
    found = learned(config, bed, validation.images, validation)
    return masked_arithmetic(config, bed, expected_mask(found.logits))


def labelled(config: Any, bed: Bed, validation: Part) -> Any:
    """Coefficients of blocks learned from half of the validation images and their labels.

    The rate is chosen on the other half.
    """
    first, second = halves(validation)
    batches = drawn_batches(config, first.images, config.addition)
    given = Batch(batches, jnp.ones(batches.label.shape))
    vectors = subtract(bed.experts, bed.base)

    def learn(rate: float) -> Any:
        return scaled_vectors(bed.module, bed.base, vectors, bed.heads, given,
                              bed.config.head.scale, rate, decay=config.decay)  # fmt: skip

    return best(bed, second, config.addition.rates, learn)[0]


def noise(config: Any, part: Part) -> Images:
    """Images of which every pixel is drawn at random, in the places of a part's."""
    rng = np.random.default_rng([config.seed, 5])
    drawn = rng.integers(0, 256, part.images.image.shape, np.uint8)
    return part.images._replace(image=jnp.asarray(drawn))


def forward_flops(config: Any, bed: Bed) -> float:
    """Operations of the matrix products of one image's forward pass."""
    shape = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.uint8)
    return program_flops(
        lambda params, image: bed.module.apply({"params": params}, to_float(image)), bed.base, shape
    )
