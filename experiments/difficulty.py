"""How hard a data set is: what simple baselines reach on its own splits.

Options are chosen on the validation split, or on the last fifth of train where there is none. Each
value is of one fit, with a 95% bootstrap interval over the test examples.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from experiments.common.encoders import load_encoder
from rml.data.sets import flights
from rml.evaluation import knn_predict

ENCODER = "weights:efficientnet_lite0@64"
NEIGHBOURS = 5
TERMS = 10_000  # most columns of TF-IDF
ITERATIONS = 100  # most of a logistic regression
WEIGHTS, TERM_WEIGHTS = (1e-3, 1e-2, 1e-1), (1.0, 10.0, 100.0)
"""Weights of the data against the penalty, scikit-learn's C: for features, for TF-IDF."""
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of ridge regression
LEAVES = (15, 63)  # of a boosted tree
LATE = 120  # minutes

Scores = Iterator["Score"]
Parts = tuple[list[Any], list[Any], list[Any]]
"""Train, validation and test."""


class Sizes(NamedTuple):
    """Most examples of train, validation and test that are read."""

    train: int
    validation: int
    test: int


IMAGES, TEXTS, FLIGHTS = Sizes(1600, 300, 500), Sizes(4000, 1000, 2000), Sizes(60000, 8000, 8000)


class Score(NamedTuple):
    """What a baseline reached.

    Attributes:
      task: What is predicted from what, or found by what.
      baseline: How.
      metric: Name of the value.
      value: Mean over the test examples.
      low: Lower end of its 95% interval.
      high: Upper end.
      train: Examples that were fitted, or documents that were searched.
      test: Test examples.
      chosen: Option that was chosen on the validation split, where there is one.
    """

    task: str
    baseline: str
    metric: str
    value: float
    low: float
    high: float
    train: int
    test: int
    chosen: str = ""


def scored(
    task: str, baseline: str, metric: str, values: Float[np.ndarray, " n"], train: int,
    chosen: str = "",
) -> Score:  # fmt: skip
    """The mean of the test examples' values with its bootstrap interval."""
    rng, n = np.random.default_rng(0), len(values)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(1000)]
    low, high = np.percentile(means, (2.5, 97.5))
    mean = float(values.mean())
    return Score(task, baseline, metric, mean, float(low), float(high), train, n, chosen)


def read_parts(builder: Any, most: Sizes) -> Parts:
    """Reads the beginnings of train, validation and test of a prepared data set."""
    train, test = builder.as_data_source("train"), builder.as_data_source("test")
    if "validation" in builder.info.splits:
        validation, end, start = builder.as_data_source("validation"), len(train), 0
    else:
        validation, end = train, len(train) - len(train) // 5
        start = end
    return (
        [train[at] for at in range(min(end, most.train))],
        [validation[at] for at in range(start, min(len(validation), start + most.validation))],
        [test[at] for at in range(min(len(test), most.test))],
    )


def of_images(builder: Any, label: str = "label", most: Sizes = IMAGES) -> Scores:
    """The majority, neighbours by pixels, neighbours and a linear probe by frozen features."""
    parts = read_parts(builder, most)
    labels = [np.array([row[label] for row in part]) for part in parts]
    images = [np.stack([row["image"] for row in part]) for part in parts]
    task, count = f"`{label}` from the image", len(parts[0])
    classes = builder.info.features[label].num_classes
    yield majority(task, labels)

    def neighbours(name: str, features: Sequence[np.ndarray]) -> Score:
        mean = features[0].mean(axis=0)
        votes = knn_predict(
            jnp.asarray(features[0] - mean), jnp.asarray(labels[0]),
            jnp.asarray(features[2] - mean), num_classes=classes, k=NEIGHBOURS,
        )  # fmt: skip
        right = np.asarray(votes).argmax(axis=1) == labels[2]
        return scored(task, f"{name}, {NEIGHBOURS}-NN", "accuracy", right, count)

    pixels = [part.reshape(len(part), -1) / np.float32(255) for part in images]
    yield neighbours("pixels", pixels)
    encoder = load_encoder(ENCODER, images[0].shape[1:])
    features = [encoder(part) for part in images]
    yield neighbours("EfficientNet-Lite0", features)
    scale = StandardScaler().fit(features[0])
    standard = [scale.transform(part) for part in features]
    yield logistic_regression(task, "EfficientNet-Lite0, linear", standard, labels, WEIGHTS)


def of_classes(
    builder: Any, text: str = "text", label: str = "label", most: Sizes = TEXTS
) -> Scores:
    """The majority, and logistic regression on TF-IDF of words and pairs of words."""
    parts = read_parts(builder, most)
    labels = [np.array([str(row[label]) for row in part]) for part in parts]
    task = f"`{label}` from `{text}`"
    yield majority(task, labels)
    yield logistic_regression(
        task, "TF-IDF, linear", term_weights(parts, text), labels, TERM_WEIGHTS
    )


def of_ratings(
    builder: Any, text: str = "text", target: str = "mean", most: Sizes = TEXTS
) -> Scores:
    """The training median, and ridge regression on TF-IDF."""
    parts = read_parts(builder, most)
    targets = [np.array([row[target] for row in part]) for part in parts]
    task, count = f"`{target}` from `{text}`", len(parts[0])
    constant = np.abs(targets[2] - np.median(targets[0]))
    yield scored(task, "median", "mean absolute error", constant, count)
    terms = term_weights(parts, text)

    fits = [Ridge(alpha=penalty).fit(terms[0], targets[0]) for penalty in PENALTIES]
    best = min(fits, key=lambda fit: np.abs(fit.predict(terms[1]) - targets[1]).mean())
    error, chosen = np.abs(best.predict(terms[2]) - targets[2]), f"penalty {best.alpha:g}"
    yield scored(task, "TF-IDF, ridge", "mean absolute error", error, count, chosen)


def of_flights(builder: Any, most: Sizes = FLIGHTS) -> Scores:
    """The training median, and boosted trees; of all flights and of those that were very late."""
    parts = read_parts(builder, most)
    targets = [np.array([row["delay"] for row in part]) for part in parts]
    columns = (*flights.NUMBERS, *flights.NAMES)
    words = [[[row[name] for name in flights.NAMES] for row in part] for part in parts]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan).fit(words[0])
    inputs = [
        np.hstack([[[row[name] for name in flights.NUMBERS] for row in part], codes.transform(own)])
        for part, own in zip(parts, words, strict=True)
    ]
    names = [column in flights.NAMES for column in columns]

    fits = [
        HistGradientBoostingRegressor(
            loss="absolute_error", max_leaf_nodes=leaves, categorical_features=names,
            random_state=0,
        ).fit(inputs[0], targets[0])
        for leaves in LEAVES
    ]  # fmt: skip
    best = min(fits, key=lambda fit: np.abs(fit.predict(inputs[1]) - targets[1]).mean())
    errors = {
        "median": (np.abs(targets[2] - np.median(targets[0])), ""),
        "boosted trees": (
            np.abs(best.predict(inputs[2]) - targets[2]), f"{best.max_leaf_nodes} leaves",
        ),
    }  # fmt: skip
    late = targets[2] >= LATE
    for task, kept in (("delay in minutes", ~late | late), (f"delays from {LATE} minutes", late)):
        for name, (error, chosen) in errors.items():
            metric = "mean absolute error"
            yield scored(task, name, metric, error[kept], len(parts[0]), chosen)


def majority(task: str, labels: Sequence[np.ndarray]) -> Score:
    """The accuracy of always saying the class that is commonest in train."""
    (commonest, _), *_ = Counter(labels[0].tolist()).most_common(1)
    return scored(task, "majority class", "accuracy", labels[2] == commonest, len(labels[0]))


def logistic_regression(
    task: str, name: str, inputs: Sequence[Any], labels: Sequence[np.ndarray],
    weights: Sequence[float],
) -> Score:  # fmt: skip
    """The accuracy of logistic regression, its penalty chosen on validation."""
    fits = [
        LogisticRegression(C=weight, max_iter=ITERATIONS, tol=1e-3).fit(inputs[0], labels[0])
        for weight in weights
    ]
    best = max(fits, key=lambda fit: fit.score(inputs[1], labels[1]))
    right = best.predict(inputs[2]) == labels[2]
    return scored(task, name, "accuracy", right, len(labels[0]), f"C {best.C:g}")


def term_weights(parts: Parts, text: str) -> list[Any]:
    """TF-IDF of each part, by the words and pairs of words of the training texts."""
    terms = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=TERMS, min_df=2)
    texts = [[row[text].decode() for row in part] for part in parts]
    return [terms.fit_transform(texts[0]), *map(terms.transform, texts[1:])]
