"""Novel classes by normalised softmax beside losses of pairs, triplets, episodes, and a classifier.

Every method trains the same encoder with a linear embedding on base classes, for as many steps of
as many images; batches of losses that compare examples have several of each class, others are
shuffled. Options are chosen on validation classes, with equally many tries of each method. Then
classes that no method has seen get a vector each, the mean of their support examples on the sphere:
*disjoint* accuracy is among them alone, *joint* accuracy among trained and novel classes, of novel
(`new`) and trained (`old`) examples and their harmonic mean. In joint classification trained
classes keep their trained vectors where a method has them (`trained`), or get the means of their
training examples (`means`). A method without trained vectors has means.

All of it is repeated on several splits of the classes, each with encoders of its own. Intervals
over splits are widened by the novel classes that they share, see
`experiments.common.class_parts.over_splits`. A split's own numbers, with what it chose, stand in
its summary in `methods/split_<seed>` of the run directory, its encoders in `methods` below that.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common import tries as common_tries
from experiments.common.class_parts import image_parts, num_classes
from experiments.common.comparison import for_each
from experiments.common.encoders import image_encoder
from experiments.common.evaluators import Labelled, encode
from experiments.common.pretraining import train_on_mesh
from experiments.metric import growth, measures, splits
from experiments.metric.methods import METHODS, TITLES, VECTORS, build_model, check_batch
from experiments.metric.methods import task as task_of
from experiments.ranges import SIZE, Range
from rml import data
from rml.encoder import ImageEmbedder
from rml.metric import class_prototypes
from rml.training import Claim, RunDirectory, Task, TrainState

OURS, PLAIN = "normalized_softmax", "softmax"
SOURCE = (
    "Hyperspherical embedding for novel class classification (arXiv:2102.03243), abstract; data "
    "and margin are this repository's"
)
STATED = "2026-12-03"
CLAIMS = (
    Claim("Novel classes alone, 1 example each: accuracy is above that of a plain softmax "
          "classifier",
          "disjoint_1shot_over_softmax", ">=", 0.0,
          f"{SOURCE}; the classifier's embeddings are compared by cosine to class means too; "
          "margin 0 since 2026-12-04", stated="2026-12-04",
          null="supcon_disjoint_1shot_over_softmax",
          says="Normalised softmax changes accuracy on novel classes with 1 example each by "
          "{mean:+.1p} points over plain softmax ({normalized_softmax_1shot_disjoint:.1%} against "
          "{softmax_1shot_disjoint:.1%})"),
    Claim("Novel classes alone, 1 example each: accuracy is above that of "
          f"{TITLES['triplet']} by 3 points", "disjoint_1shot_over_triplet", ">=", 0.03,
          f"{SOURCE}; a claim on contrastive pairs was left out after the first measurement, "
          "above which a plain softmax classifier was by as much",
          stated=STATED, null="softmax_disjoint_1shot_over_triplet",
          says="It changes that accuracy by {mean:+.1p} points over triplets"),
    Claim("Novel and trained classes together, 5 examples each: the harmonic mean of both "
          f"accuracies is above that of {TITLES['triplet']} by 3 points",
          "joint_over_triplet", ">=", 0.03, SOURCE,
          stated=STATED, null="softmax_joint_over_triplet",
          says="Among novel and trained classes together it changes accuracy by {mean:+.1p} points "
          "over triplets"),
    Claim("Operations of the loss grow with the batch by an exponent of at most 1.1",
          "exponent_normalized_softmax", "<=", 1.1,
          "arXiv:2102.03243, abstract: without pairwise evaluation; margin is this repository's",
          stated=STATED, null="exponent_triplet", any_data=True,
          says="Operations of the loss grow with the batch to the power of {mean:.2f}, of the "
          "triplet loss {exponent_triplet:.2f}"),
)  # fmt: skip
CAPTIONS = {
    "accuracy.png": "Novel classes alone: accuracy by number of support examples, by method; mean "
    "over splits with its 95% interval.",
    "joint.png": "Novel and trained classes together, 5 support examples: accuracy of novel and of "
    "trained examples and their harmonic mean; trained classes by their means, and by trained "
    "vectors where a method has them; mean over splits with its 95% interval.",
    "growth.png": "Operations of a loss and its gradient against the examples of a batch.",
}
PICTURE = "accuracy.png"
RANGES = {
    "splits": SIZE, "batch.classes": Range(2, whole=True), "batch.examples": Range(2, whole=True),
}  # fmt: skip
STAGED = True  # tries choose the options of all methods by the evaluation
FIVE = "5shot"


def task(config: Any) -> Task:
    """The training problem of the method of a directory `methods/<name>`, or of normalised softmax.

    Judged on validation classes.
    """
    method = config.get("method", OURS)
    parts = cache(lambda: image_parts(config))  # a task is made without opening data
    model = build_model(config, method)

    def evaluate(state: TrainState) -> dict[str, float]:
        return {"validation": validation(config, model, state, parts()["validation"])}

    return task_of(config, method, lambda part: parts()[part], evaluate)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The embeddings of images that a trained state of that method gives."""
    return image_encoder(build_model(config, config.get("method", OURS)), config, state)


def tries(config: Any) -> dict[str, int]:
    """Options that each method chooses from on validation classes."""
    return {method: len(own) for method, own in common_tries.candidates(config, METHODS).items()}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses, trains and measures in each split, compares over splits, draws."""
    check_batch(config)
    common_tries.candidates(config, METHODS)
    metrics = splits.measure_all(config, run, measure_split)
    counts = growth.operations(config)
    metrics |= growth.exponents(counts)
    draw(config, run, metrics)
    growth.draw(run.figure("growth.png"), counts)
    return metrics


def measure_split(own: Any, run: RunDirectory) -> dict[str, float]:
    """Measures every method on one split of the classes, with options chosen on it."""
    parts = image_parts(own)

    def problem(one: Any, method: str) -> Task:
        return task_of(one, method, parts.__getitem__, lambda state: {})

    @cache
    def model(method: str) -> Any:
        return build_model(own, method)

    def score(method: str, one: Any, state: TrainState) -> float:
        return validation(one, model(method), state, parts["validation"])

    tried = common_tries.candidates(own, METHODS)
    short = {method: [splits.shortened(one) for one in each] for method, each in tried.items()}
    chosen, metrics = common_tries.choose(
        own, run, short, task=problem, score=score, name="validation"
    )

    def measure(method: str, inner: RunDirectory) -> tuple[dict[str, float], None]:
        one = tried[method][chosen[method]]
        state = train_on_mesh(one, inner, problem(one, method))
        return measure_method(one, method, model(method), state, parts), None

    for method, (found, _) in for_each(run, METHODS, measure).items():
        metrics |= {f"{method}_{name}": value for name, value in found.items()}
    return metrics | differences(metrics)


def embed(config: Any, model: Any, state: TrainState, source: data.Source) -> Labelled:
    """Embeddings and labels of a source's images."""
    size = config.evaluation.batch_size
    return encode(image_encoder(model, config, state), source, batch_size=size)


def validation(config: Any, model: Any, state: TrainState, source: data.ArraySource) -> float:
    """Accuracy among validation classes alone, the mean over numbers of support examples."""
    x, labels = embed(config, model, state, source)
    found = [
        disjoint(config, x, labels, shots, source.num_classes)
        for shots in shots_of(config, labels, source.num_classes).values()
    ]
    return float(np.mean(found))


def shots_of(config: Any, labels: Any, classes: int) -> dict[str, np.ndarray]:
    """Support examples by name, see `measures.numbers_of_shots`."""
    return measures.numbers_of_shots(config.evaluation.shots, labels, classes)


def disjoint(config: Any, x: Any, labels: Any, shots: np.ndarray, classes: int) -> float:
    """Accuracy among the classes of some examples alone."""
    found = measures.novel_accuracies(
        jax.random.key(config.seed), x[:1], x[:1], labels[:1], x, labels, jnp.asarray(shots),
        classes=classes, draws=config.evaluation.draws,
    )  # fmt: skip
    return float(jnp.mean(found.disjoint))


def measure_method(
    config: Any, method: str, model: Any, state: TrainState, parts: Mapping[str, data.ArraySource]
) -> dict[str, float]:
    """Accuracies of one trained method on novel and trained classes."""
    embedded = {
        part: embed(config, model, state, parts[part]) for part in ("base", "held_out", "novel")
    }
    novel, labels = embedded["novel"]
    classes, base = parts["novel"].num_classes, num_classes(config, "base")
    vectors = {"means": class_prototypes(*embedded["base"], num_classes=base)}
    if method in VECTORS:
        vectors["trained"] = state.variables["params"]["prototypes"]
    measured: dict[str, float] = {}
    for kind, own in vectors.items():
        accuracies = partial(
            measures.novel_accuracies, jax.random.key(config.seed), jnp.asarray(own),
            *embedded["held_out"], novel, labels, classes=classes, draws=config.evaluation.draws,
        )  # fmt: skip
        for place, shots in shots_of(config, labels, classes).items():
            found = measures.described(place, accuracies(jnp.asarray(shots)))
            measured |= {
                name if name.endswith("_disjoint") else f"{name}_{kind}": value
                for name, value in found.items()
            }
    return measured


def differences(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the claims compare, in one split."""
    found: dict[str, float] = {}

    def joint(method: str, kind: str = "") -> float:
        kind = kind or ("trained" if method in VECTORS else "means")
        return metrics[f"{method}_{FIVE}_harmonic_{kind}"]

    for one, words in ((OURS, ""), (PLAIN, "softmax_"), ("supcon", "supcon_")):
        for other in ("triplet", "contrastive", PLAIN):
            for place in ("1shot", FIVE):
                mine, theirs = (metrics[f"{name}_{place}_disjoint"] for name in (one, other))
                found[f"{words}disjoint_{place}_over_{other}"] = mine - theirs
            found[f"{words}joint_over_{other}"] = joint(one) - joint(other)
        if one in VECTORS:
            gap = joint(one, "trained") - joint(one, "means")
            found[f"{words}joint_trained_over_means"] = gap
    return found


def draw(config: Any, run: RunDirectory, metrics: Mapping[str, float]) -> None:
    """Draws accuracies by method: of novel classes alone, and beside trained ones."""

    def panel(names: Mapping[str, str]) -> tuple[list[float], list[float]]:
        """Values in percent and half-widths of intervals, NaN where a method has none."""
        keys = list(names.values())
        values = [100 * metrics.get(key, np.nan) for key in keys]
        ends = [(metrics.get(f"{key}_low", np.nan), metrics.get(f"{key}_high", np.nan))
                for key in keys]  # fmt: skip
        return values, [50 * (high - low) for low, high in ends]

    rows = [TITLES[method] for method in METHODS]
    places = [*(f"{one}shot" for one in config.evaluation.shots), "half"]
    said = {"1shot": "1 example", "half": "half of them"}
    figures.dots(
        run.figure("accuracy.png"), rows,
        {
            said.get(place, f"{place.removesuffix('shot')} examples"): panel(
                {method: f"{method}_{place}_disjoint" for method in METHODS}
            )
            for place in places
        },
        "accuracy among novel classes (%), 95% interval over splits",
    )  # fmt: skip
    figures.dots(
        run.figure("joint.png"), rows,
        {
            f"{title},\n{words}": panel(
                {method: f"{method}_{FIVE}_{kind}_{vectors}" for method in METHODS}
            )
            for vectors, words in (("means", "means"), ("trained", "trained vectors"))
            for kind, title in (("new", "novel"), ("old", "trained"), ("harmonic", "harmonic mean"))
        },
        "accuracy among all classes (%), 95% interval over splits",
    )  # fmt: skip
