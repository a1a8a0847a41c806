"""Every way of merging eight experts on one bed: one table, five tries each, seeds as an axis.

Experts are merged by task arithmetic (Ilharco et al., arXiv:2212.04089), TIES (Yadav et al.,
arXiv:2306.01708), DARE (Yu et al., arXiv:2311.03099), RegMean (Jin et al., arXiv:2212.09849),
Fisher merging (Matena and Raffel, arXiv:2111.09832), AdaMerging (Yang et al., arXiv:2310.02575),
Concrete subspaces (Tang et al., arXiv:2312.06173), aTLAS (Zhang et al., arXiv:2407.02880) and
Twin-merging (Lu et al., arXiv:2406.15479). What is judged is what a model keeps of the experts'
accuracy, a mean over the tasks. AdaMerging and masks learn from examples without labels, aTLAS from
labelled ones, the router of Twin-merging from training examples; none of them is judged. Data,
networks and margins are this repository's.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.trial import (
    BASELINE,
    METHOD,
    NULL,
    PART,
    REFERENCE,
    Arm,
    Go,
    Metric,
    Question,
    Trial,
    recipe,
)
from experiments.merging import concrete_masks
from experiments.merging.atlas_learning import Batch, scaled_vectors
from experiments.merging.bed import Bed, subtract, take
from experiments.merging.experts_bed import Experts, Seed
from experiments.merging.finetuning import features, logits, scores
from experiments.merging.fishers import fishers_of, shuffled
from experiments.merging.grams import grams_of
from experiments.merging.judging import Part, of_hits
from experiments.merging.ranking import drawn_batches, mean_entropy
from experiments.merging.tasks import joined
from experiments.merging.twin_parts import bytes_of, of_weights, parts_of
from experiments.ranges import Range
from rml.errors import unknown
from rml.merging import learn_coefficients, learn_mask, mask_vectors, merge, regmean
from rml.models import Router, learn_router, route
from rml.ops import trees
from rml.training import RunDirectory


class Merged(NamedTuple):
    """What merging has made.

    Attributes:
      right: Which examples of a part it names rightly.
      bytes: Bytes that are kept for it.
    """

    right: Callable[[Part], np.ndarray]
    bytes: float


def bed(config: Any, run: RunDirectory) -> Experts:
    """The base, and experts of every seed."""
    return Experts(config, run)


def one_model(params: Any, own: Bed) -> Merged:
    """A single model for all tasks."""

    def right(part: Part) -> np.ndarray:
        found = scores(own.module, params, own.heads, part.images, own.config.head.scale)
        return np.asarray(jnp.argmax(found, -1) == part.images.label)

    return Merged(right, float(trees.count_bytes(params)))


def moved(seed: Seed, merged: Any, scale: float) -> Any:
    """The base and a multiple of the way from it to a merged model."""
    return _moved(seed.bed.base, merged, scale)


@jax.jit
def _moved(base: Any, merged: Any, scale: Any) -> Any:
    return jax.tree.map(lambda start, own: start + scale * (own - start), base, merged)


def arithmetic(config: Any, seed: Seed) -> Any:
    """Task arithmetic."""
    return merge("task_arithmetic", seed.bed.base, seed.bed.experts, scale=config.merge.scale)


def ties(config: Any, seed: Seed) -> Any:
    """TIES, whose merged vector has a scale of its own."""
    options = dict(scale=config.merge.scale, keep=config.merge.keep)
    return merge("ties", seed.bed.base, seed.bed.experts, **options)


def dare(config: Any, seed: Seed) -> Any:
    """Task arithmetic of vectors of which entries are dropped, the others rescaled."""
    options = dict(rate=config.merge.dropped, key=jax.random.key(config.seed))
    return merge("dare", seed.bed.base, seed.bed.experts, scale=config.merge.scale, **options)


def fisher(config: Any, seed: Seed) -> Any:
    """Fisher merging; a multiple of its way from the base is taken, as of task arithmetic's."""
    own = seed.bed
    sources = [one.train for one in own.tasks.values()]
    found = seed.once("fishers", lambda: fishers_of(
        own, own.experts, own.heads, sources, **config.fisher.to_dict()
    ))  # fmt: skip
    if config.merge.moved:
        found = shuffled(found, jax.random.key(config.seed))
    merged = merge("fisher", own.base, own.experts, fishers=found, favour_first=False)
    return moved(seed, merged, config.merge.scale * len(own.tasks))


def regmeaned(config: Any, seed: Seed) -> Any:
    """RegMean."""
    own = seed.bed
    sources = [one.train for one in own.tasks.values()]
    grams = seed.once("grams", lambda: grams_of(own, sources, examples=config.fisher.examples))
    return _regmean(own.base, own.experts, grams, config.merge.alpha)


@jax.jit
def _regmean(base: Any, experts: Any, grams: Any, alpha: Any) -> Any:
    return regmean(base, experts, grams=grams, alpha=alpha)


def adamerged(config: Any, seed: Seed, vectors: Any = None) -> Any:
    """AdaMerging by blocks, from examples without labels."""
    own = seed.bed
    batches = drawn_batches(config, seed.learned.images, config.learn)
    vectors = subtract(own.experts, own.base) if vectors is None else vectors
    return _adamerged(own.module, own.base, vectors, own.heads, batches, own.config.head.scale,
                      config.learn.start, config.learn.rate)  # fmt: skip


def _adamerged(module: Any, *given: Any) -> Any:
    return _coefficients(module)(*given)


@cache
def _coefficients(module: Any) -> Callable[..., Any]:
    @jax.jit
    def learn(base: Any, vectors: Any, heads: Array, batches: Any, scale: Any, start: Any,
              rate: Any) -> Any:  # fmt: skip
        found = learn_coefficients(mean_entropy(module, heads, scale), base, vectors, batches,
                                   start=start, learning_rate=rate)  # fmt: skip
        return trees.combine(base, vectors, found.params)

    return learn


def concrete(config: Any, seed: Seed) -> Any:
    """Task arithmetic, or AdaMerging, of vectors behind a mask learned without labels.

    The mask of AdaMerging is learned one step of its coefficients ahead. `moved` takes a mask of
    fair coins.
    """
    own, options = seed.bed, config.learn
    vectors = subtract(own.experts, own.base)
    if config.merge.moved:
        mask = concrete_masks.random_mask(config, own)
    else:
        ahead = drawn_batches(config, seed.learned.images, options, seed=1)
        found = _masks(own.module, config.merge.ahead)(
            own.base, vectors, own.heads, drawn_batches(config, seed.learned.images, options),
            ahead, own.config.head.scale, config.merge.scale, config.mask.to_dict(),
            jax.random.key(config.seed),
        )  # fmt: skip
        mask = concrete_masks.probabilities(found)
    if config.merge.ahead:
        return adamerged(config, seed, concrete_masks.behind(vectors, mask))
    return _arithmetic(own.base, mask_vectors(vectors, mask), config.merge.scale)


@cache
def _masks(module: Any, bilevel: bool) -> Callable[..., Any]:
    @jax.jit
    def learn(base: Any, vectors: Any, heads: Array, batches: Any, ahead: Any, temperature: Any,
              scale: Any, options: Any, key: Array) -> Any:  # fmt: skip
        return learn_mask(
            mean_entropy(module, heads, temperature), base, vectors, batches, key=key,
            inner_batches=ahead if bilevel else None, scale=scale, **options,
        ).logits  # fmt: skip

    return learn


@jax.jit
def _arithmetic(base: Any, vectors: Any, scale: Any) -> Any:
    return jax.tree.map(lambda start, own: start + scale * jnp.sum(own, 0), base, vectors)


def atlas(config: Any, seed: Seed) -> Any:
    """Coefficients of blocks, or of vectors, learned from labels; `moved` exchanges entries."""
    own = seed.bed
    batches = drawn_batches(config, seed.learned.images, config.learn)
    vectors = subtract(own.experts, own.base)
    if config.merge.moved:
        vectors = shuffled(vectors, jax.random.key(config.seed))
    return scaled_vectors(
        own.module, own.base, vectors, own.heads, Batch(batches, jnp.ones(batches.label.shape)),
        own.config.head.scale, config.learn.rate, config.learn.decay,
        by_block=config.merge.by_block,
    )[0]  # fmt: skip


def twin(config: Any, seed: Seed) -> Merged:
    """Task arithmetic as shared expert, low-rank vectors beside it, and a router that adds them."""
    own, count = seed.bed, len(seed.bed.tasks)
    shared = arithmetic(config, seed)
    found = parts_of(own, shared, compress=config.twin.compress, fraction=config.twin.fraction)
    say = learned_router(config, seed, shared)

    def right(part: Part) -> np.ndarray:
        weights = say(part) if config.twin.routes == "router" else _fixed(config, part, count)
        read = of_weights(own, found, weights, part.images)
        return _named(own, read, part)

    return Merged(right, float(bytes_of(found)) + _router_bytes(own))


def routed(config: Any, seed: Seed) -> Merged:
    """Whole experts, of which the router on the base's features picks one for each example."""
    own = seed.bed
    say = learned_router(config, seed, own.base)

    def right(part: Part) -> np.ndarray:
        return _by_places(own, part, np.asarray(jnp.argmax(say(part), -1)))

    return Merged(right, float(trees.count_bytes(own.experts)) + _router_bytes(own))


def learned_router(config: Any, seed: Seed, shared: Any) -> Callable[[Part], Array]:
    """Weights of vectors for examples of a part, by a router on a shared expert's features."""
    own, options = seed.bed, config.router
    given = joined(own.tasks, "train", options.most, config.seed)
    router, chosen = Router(len(own.tasks)), seed.learned.images
    learned = learn_router(
        router, jax.random.key(config.seed), features(own.module, shared, given.image), given.task,
        (features(own.module, shared, chosen.image), chosen.task),
        **{key: options[key] for key in ("epochs", "batch_size", "learning_rate")},
    )  # fmt: skip

    def say(part: Part) -> Array:
        read = features(own.module, shared, part.images.image)
        return route(router.apply(learned.variables, read))  # type: ignore[arg-type]

    return say


def _router_bytes(own: Bed) -> float:
    width = own.heads.shape[-1]
    made = jax.eval_shape(Router(len(own.tasks)).init, jax.random.key(0), jnp.zeros((1, width)))
    return float(trees.count_bytes(made))


def _fixed(config: Any, part: Part, count: int) -> Array:
    """Weights that no router has learned: of the true task, or equal ones."""
    if config.twin.routes == "oracle":
        return jax.nn.one_hot(part.images.task, count)
    return jnp.full((len(part.images.task), count), 1 / count)


def _named(own: Bed, read: Array, part: Part) -> np.ndarray:
    found = logits(read, own.heads[part.images.task], 1.0)
    return np.asarray(jnp.argmax(found, -1) == part.images.label)


def _by_places(own: Bed, part: Part, places: np.ndarray) -> np.ndarray:
    """Which examples the expert of a place names rightly, each by the head of its own task."""
    right = np.zeros(len(places), bool)
    for i in np.unique(places):
        found = one_model(take(own.experts, int(i)), own).right(part)
        right[places == i] = found[places == i]
    return right


def experts(config: Any, seed: Seed) -> Merged:
    """Each expert on its own task."""
    own = seed.bed
    return Merged(
        lambda part: _by_places(own, part, np.asarray(part.images.task)),
        float(trees.count_bytes(own.experts)),
    )


def ensemble(config: Any, seed: Seed) -> Merged:
    """The mean of all experts' probabilities."""
    own = seed.bed

    def right(part: Part) -> np.ndarray:
        total = sum(
            jax.nn.softmax(scores(own.module, take(own.experts, i), own.heads, part.images,
                                  own.config.head.scale))
            for i in range(len(own.tasks))
        )  # fmt: skip
        return np.asarray(jnp.argmax(total, -1) == part.images.label)

    return Merged(right, float(trees.count_bytes(own.experts)))


MODELS: dict[str, Callable[[Any, Seed], Any]] = {
    "base": lambda _, seed: seed.bed.base,
    "average": lambda _, seed: merge("average", seed.bed.base, seed.bed.experts),
    "arithmetic": arithmetic, "ties": ties, "dare": dare, "fisher": fisher, "regmean": regmeaned,
    "adamerging": adamerged, "concrete": concrete, "atlas": atlas,
}  # fmt: skip
"""Ways to one model."""
SYSTEMS = {"twin": twin, "routed": routed, "experts": experts, "ensemble": ensemble}
"""Ways that keep more than one model's parameters."""


def fit(config: Any, bed: Experts) -> Merged:
    """Merges the experts of a seed."""
    seed = bed.of(int(config.seed))
    if config.merge.way in SYSTEMS:
        return SYSTEMS[config.merge.way](config, seed)
    return one_model(MODELS[config.merge.way](config, seed), seed.bed)


def score(config: Any, bed: Experts, state: Merged, part: str) -> np.ndarray:
    """By example, whether it is named rightly, over the accuracy of its task's expert."""
    own = bed.of(int(config.seed)).parts[part]
    return of_hits(own, state.right(own)).normalised


def costs(config: Any, bed: Experts, state: Merged) -> dict[str, float]:
    """Copies of one model that are kept."""
    return {"copies": state.bytes / trees.count_bytes(bed.of(int(config.seed)).bed.base)}


def check(config: Any) -> None:
    """Raises `UserError` unless the way of merging and its routes are known."""
    if config.merge.way not in MODELS | SYSTEMS:
        raise unknown("merge.way", config.merge.way, MODELS | SYSTEMS)
    if config.twin.routes not in ROUTES:
        raise unknown("twin.routes", config.twin.routes, ROUTES)


def won_back(means: Mapping[str, float]) -> float:
    """The share of what experts gain over the base that task arithmetic keeps."""
    gain = means["experts"] - means["base"]
    return (means["arithmetic"] - means["base"]) / gain


ROUTES = ("router", "oracle", "equal")
SCALES = {"merge.scale": (0.1, 0.2, 0.3, 0.45, 0.7)}
WIDE = {"merge.scale": (0.3, 0.6, 1.0, 1.5, 2.2)}
RATES = {"learn.rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
ALPHAS = {"merge.alpha": (0.3, 0.5, 0.7, 0.9, 0.97)}


def way(name: str, **changes: Any) -> dict[str, Any]:
    """The changes of an arm that merges in a way."""
    return {"merge.way": name} | {key.replace("__", "."): own for key, own in changes.items()}


SIMPLE = ("average", "arithmetic", "ties", "dare")
OURS = "data, networks and margin are this repository's"
TRIAL = Trial(
    metrics={"normalised": Metric("share of the experts' accuracy", unit="example")},
    arms={
        "base": Arm("the base", REFERENCE, way("base")),
        "average": Arm("average", BASELINE, way("average")),
        "arithmetic": Arm("task arithmetic", BASELINE, way("arithmetic"), SCALES),
        "ties": Arm("TIES", BASELINE, way("ties"), WIDE),
        "dare": Arm("DARE", BASELINE, way("dare"), SCALES),
        "regmean": Arm("RegMean", METHOD, way("regmean"), ALPHAS),
        "fisher": Arm("Fisher merging", METHOD, way("fisher"), SCALES),
        "adamerging": Arm("AdaMerging", METHOD, way("adamerging"), RATES),
        "concrete": Arm("Concrete task arithmetic", METHOD, way("concrete"), SCALES),
        "concrete_adamerging": Arm("Concrete AdaMerging", METHOD,
                                   way("concrete", merge__ahead=True), RATES),
        "isotropic": Arm("aTLAS, one number a vector", PART,
                         way("atlas", merge__by_block=False), RATES),
        "atlas": Arm("aTLAS", METHOD, way("atlas"), RATES),
        "twin": Arm("Twin-merging", METHOD, way("twin"), SCALES),
        "full": Arm("Twin-merging of whole vectors", PART,
                    way("twin", twin__compress="none"), SCALES),
        "oracle": Arm("Twin-merging that knows the task", REFERENCE,
                      way("twin", twin__routes="oracle"), SCALES),
        "routed": Arm("the expert that a router picks", REFERENCE, way("routed")),
        "ensemble": Arm("ensemble of the experts", REFERENCE, way("ensemble")),
        "experts": Arm("each expert on its task", REFERENCE, way("experts")),
        "uniform": Arm("Twin-merging, equal weights", NULL, way("twin", twin__routes="equal"),
                       SCALES),
        "places": Arm("Fishers whose entries changed places", NULL,
                      way("fisher", merge__moved=True), SCALES),
        "coins": Arm("a mask of fair coins", NULL, way("concrete", merge__moved=True), SCALES),
        "exchanged": Arm("aTLAS of vectors whose entries changed places", NULL,
                         way("atlas", merge__moved=True), RATES),
    },
    bed=bed, fit=fit, computed=True, score=score, costs=costs, check=check,
    groups=lambda config, bed, part: bed.task_of(part),
    headline=Question(
        "Twin-merging keeps {normalised_twin:.0%} of eight experts' accuracy in {copies_twin:.1f} "
        "copies of memory, {mean:+.1p} points over {over}", "twin", null="uniform", over=SIMPLE,
    ),
    questions={
        "fisher_gain": Question(
            "Fisher merging changes what is kept of eight experts' accuracy by {mean:+.1p} points "
            "over {over} at its best scale", "fisher", null="places", over=("arithmetic",),
            source=f"arXiv:2111.09832; {OURS}",
        ),
        "concrete_gain": Question(
            "A mask learned without labels changes what task arithmetic keeps of eight experts' "
            "accuracy by {mean:+.1p} points", "concrete", null="coins", over=("arithmetic",),
            source=f"arXiv:2312.06173; {OURS}",
        ),
        "atlas_gain": Question(
            "A coefficient for each block changes what is kept of eight experts' accuracy by "
            "{mean:+.1p} points over one for each vector", "atlas", null="exchanged",
            over=("isotropic",), source=f"arXiv:2407.02880; {OURS}",
        ),
    },
    go=(
        Go("task arithmetic wins back 40% of what the experts gain over the base", 0.4, won_back),
        Go("experts are five points above the base", 0.05,
           lambda means: means["experts"] - means["base"]),
    ),
    source=f"arXiv:2406.15479; {OURS}",
    stated="2026-12-04",
)  # fmt: skip
RANGES = {
    "seeds": Range(1, whole=True), "tuning_seeds": Range(whole=True),
    "merge.alpha": Range(high=1), "merge.keep": Range(0, 1, above=True),
    "merge.dropped": Range(0, 1, below=True), "twin.fraction": Range(0, 1, above=True),
    "evaluation.validation": Range(1, whole=True), "evaluation.most": Range(1, whole=True),
    "router.most": Range(2, whole=True), "router.epochs": Range(1, whole=True),
}  # fmt: skip
run, CLAIMS, CAPTIONS = recipe(TRIAL)
