"""Hydra beside the others, as `hydra.compare`, where classes have a taxonomy that is given.

Whether gates relate classes of one group is a rank test: do pairs of classes of one group have
larger overlaps of gates than other pairs? Classes are permuted among groups, see
`rml.hydra.taxonomy_test`. Beside gates stand the cosines of the classes' mean features under
SupCon, and of their mean pixels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.evaluators import Labelled, pixels
from experiments.hydra import compare
from experiments.hydra.evaluator import own_gates
from rml import data
from rml.data.glyphs import unicode_block
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.hydra import gate_overlap, taxonomy_test
from rml.ops.similarity import normalize
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = f"{compare.SOURCE}; the taxonomy, the test and the margins are this repository's"
CLAIMS = (
    *compare.CLAIMS[:3],
    Claim("Gates of classes of one group overlap more than others: rank correlation of overlap "
          "with being of one group of at least 0.05",
          "taxonomy_correlation", ">=", 0.05, SOURCE,
          stated="2026-11-26", null="taxonomy_correlation_permuted",
          says="The overlap of two classes' gates has a rank correlation of {mean:.2f} with being "
          "of one group, the likeness of their mean pixels {taxonomy_correlation_pixels:.2f}"),
)  # fmt: skip
RANGES = compare.RANGES
CAPTIONS = {
    **compare.CAPTIONS,
    "taxonomy.png": "Rank correlation of each similarity of classes with being of one group.",
    "groups.png": "Mean overlap of the gates of two classes, by their groups.",
}
PICTURE = compare.PICTURE
STAGED = compare.STAGED
UNICODE_BLOCK = "unicode_block"


def task(config: Any) -> Task:
    """The training problem of Hydra, or of the method of a directory `methods/<name>`."""
    return compare.task(config)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state of that method gives."""
    return compare.encoder(config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Compares as `hydra.compare`, and tests relations of classes against the taxonomy."""
    groups = taxonomy(config, compare.checked(config).train.class_names)
    metrics, trained = compare.compare(config, run)
    hydra, supcon = trained["hydra"], trained["supcon"]
    gates = own_gates(hydra.evaluator.model, hydra.variables)
    similarities = {
        "gates": np.asarray(gate_overlap(gates)),
        "supcon": mean_cosines(supcon.features[0], len(groups)),
        "pixels": mean_cosines(hydra.evaluator.extract(pixels)[0], len(groups)),
    }
    tests = {
        name: taxonomy_test(one, groups, seed=config.seed, **config.taxonomy.test)
        for name, one in similarities.items()
    }
    gates_test = tests["gates"]
    shown = {"gates": gates_test.correlation, "permuted": gates_test.null_correlation,
             "SupCon means": tests["supcon"].correlation,
             "pixel means": tests["pixels"].correlation}  # fmt: skip
    figures.bars(
        run.figure("taxonomy.png"), list(shown), {"correlation": list(shown.values())},
        ylabel="rank correlation", decimals=3,
    )  # fmt: skip
    draw_groups(run, similarities["gates"], groups)
    other = tests["pixels"].correlation
    return metrics | {
        "taxonomy_groups": len(set(groups)),
        "taxonomy_correlation": gates_test.correlation,
        "taxonomy_correlation_permuted": gates_test.null_correlation,
        "taxonomy_p": gates_test.p,
        "taxonomy_p_permuted": gates_test.null_p,
        "taxonomy_correlation_supcon": tests["supcon"].correlation,
        "taxonomy_p_supcon": tests["supcon"].p,
        "taxonomy_correlation_pixels": other,
        "taxonomy_p_pixels": tests["pixels"].p,
        "taxonomy_correlation_over_pixels": gates_test.correlation - other,
        "taxonomy_correlation_permuted_over_pixels": gates_test.null_correlation - other,
    }


def taxonomy(config: Any, names: Any) -> list[str]:
    """The group of each class: `taxonomy.key` is a feature of the data, or "unicode_block".

    Raises:
      UserError: The data has no such feature or names none as its label, a class has no group, or
        is no character of a known block.
    """
    key, options = config.taxonomy.key, config.data
    given = f"taxonomy.key is {key!r}"
    if key == UNICODE_BLOCK:
        for name in names:
            if len(name) != 1:
                raise UserError(f"{given}, expected classes that are characters, got {name!r}")
        try:
            return [unicode_block(name) for name in names]
        except ValueError as error:
            raise UserError(f"{given}: {error}") from None
    if "label_key" not in options:
        raise UserError(
            f"{given}, expected {UNICODE_BLOCK!r}: groups are read beside data.label_key, which "
            "the config has not"
        )
    try:
        groups = data.groups_of_classes(
            options.name, options.train, label_key=options.label_key, group_key=key,
            data_dir=options.data_dir,
        )  # fmt: skip
    except UserError as error:
        known = f"or {UNICODE_BLOCK!r} where classes are characters"
        raise UserError(f"{given}: {error}, {known}") from None
    for name in names:
        if name not in groups:
            raise UserError(f"{given}, of which class {name!r} has none, expected one of each")
    return [groups[name] for name in names]


def mean_cosines(features: Labelled, classes: int) -> np.ndarray:
    """Cosines of the classes' mean features, less the mean of all."""
    x, labels = features
    sums = jax.ops.segment_sum(x, labels, classes)
    counts = jnp.maximum(jax.ops.segment_sum(jnp.ones(len(x)), labels, classes), 1)
    means = sums / counts[:, None]
    unit = normalize(means - means.mean(0))
    return np.asarray(unit @ unit.T)


def draw_groups(run: RunDirectory, overlap: np.ndarray, groups: list[str]) -> None:
    """Draws the mean overlap of classes of two groups; a class with itself does not count."""
    names = list(dict.fromkeys(groups))
    member = np.array([[group == name for name in names] for group in groups], float)
    apart = overlap - np.diag(np.diag(overlap))
    pairs = member.T @ (1 - np.eye(len(groups))) @ member
    mean = np.full(pairs.shape, np.nan)
    np.divide(member.T @ apart @ member, pairs, out=mean, where=pairs > 0)
    figures.heatmap(
        run.figure("groups.png"), mean, names,
        title="Overlap of gates by group", value_label="mean overlap",
    )  # fmt: skip
