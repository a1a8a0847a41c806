"""How features of images are judged: neighbours, a linear probe, their spectrum."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common import figures
from experiments.common.images import all_batches, open_images
from rml import data, evaluation
from rml.data import augment

Labelled = tuple[Array, Array]
"""Features [n, d] and labels [n]."""
Splits = tuple[Labelled, Labelled]
"""Features and labels of the training images, and of the test images."""


def encode(encoder: Callable[[Any], Array], source: data.Source, *, batch_size: int) -> Labelled:
    """Features and labels of a source, in its order."""
    return evaluation.extract_features(
        encoder, all_batches(source, batch_size), batch_size=batch_size
    )


def pixels(images: Any) -> Array:
    """The images themselves, or a user's vectors, as features."""
    return augment.to_float(jnp.asarray(images)).reshape(len(images), -1)


class ImageEvaluator:
    """Measures features on one data set, by the same neighbours and probe for every encoder."""

    def __init__(self, model: Any, config: Any):
        """Prepares the encoder; the data is opened when it is first needed.

        Args:
          model: A module with a method `features(images)`.
          config: The run's config, of which `data`, `evaluation` and `seed` are read.
        """
        self.config, self.options, self.seed = config, config.evaluation, config.seed
        self._encode = jax.jit(
            lambda variables, images: model.apply(
                variables, augment.to_float(images), method=model.features
            )
        )

    @cached_property
    def train(self) -> data.Source:
        """Training source, which is also the neighbours' memory and the probe's training set."""
        return open_images(self.config, "train")

    @cached_property
    def test(self) -> data.Source:
        """Test source."""
        return open_images(self.config, "test")

    def features(self, variables: Any) -> Splits:
        """Features and labels of the training and test images."""
        return self.extract(lambda images: self._encode(variables, images))

    def extract(self, encoder: Callable[[Any], Array]) -> Splits:
        """Features and labels of both splits by any function of images."""
        size = self.options.batch_size
        return encode(encoder, self.train, batch_size=size), encode(
            encoder, self.test, batch_size=size
        )

    def knn(self, features: Splits) -> float:
        """Accuracy of weighted nearest neighbours."""
        (train, train_labels), (test, test_labels) = features
        return float(
            evaluation.knn_accuracy(
                train, train_labels, test, test_labels,
                num_classes=self.train.num_classes,
                k=min(self.options.knn_k, len(train)),
                temperature=self.options.knn_temperature,
            )
        )  # fmt: skip

    def knn_of(self, state: Any) -> dict[str, float]:
        """Evaluates a state during training."""
        return {"knn": self.knn(self.features(state.variables))}

    def probe(self, features: Splits) -> float:
        """Accuracy of a linear probe."""
        (train, train_labels), (test, test_labels) = features
        return float(
            evaluation.linear_probe(
                train, train_labels, test, test_labels,
                num_classes=self.train.num_classes, key=jax.random.key(self.seed),
            ).accuracy
        )  # fmt: skip

    def compare(self, trained: Splits, untrained: Splits) -> dict[str, float]:
        """Compares trained features with those of the untrained encoder and with raw pixels.

        Args:
          trained: As `features` returns them.
          untrained: Likewise.

        Returns:
          Accuracy of neighbours and probe for all three, margins of the trained encoder, and the
          diagnostics of its spectrum on the test images.
        """
        metrics: dict[str, float] = {}
        named = {"": trained, "_untrained": untrained, "_pixels": self.extract(pixels)}
        for suffix, features in named.items():
            metrics[f"knn{suffix}"] = self.knn(features)
            metrics[f"linear_probe{suffix}"] = self.probe(features)
        for kind in ("knn", "linear_probe"):
            for other in ("untrained", "pixels"):
                metrics[f"{kind}_over_{other}"] = metrics[kind] - metrics[f"{kind}_{other}"]
        test, test_untrained = trained[1][0], untrained[1][0]
        metrics["rankme"] = float(evaluation.rankme(test))
        metrics["rankme_untrained"] = float(evaluation.rankme(test_untrained))
        metrics["participation_ratio"] = float(evaluation.participation_ratio(test))
        metrics["uniformity"] = float(evaluation.uniformity(test))
        return metrics

    def draw(self, folder: Callable[[str], Path], trained: Splits, untrained: Splits) -> None:
        """Draws the features: 2-D embedding by class, singular spectrum."""
        features, labels = (part[:2000] for part in trained[1])
        figures.embedding(
            folder("embedding.png"),
            np.asarray(evaluation.embed_2d(features, method="tsne")),
            np.asarray(labels),
            self.test.class_names,
            title="t-SNE of the test images' features",
        )
        figures.spectrum(
            folder("spectrum.png"),
            {
                name: np.asarray(evaluation.singular_values(splits[1][0], center=True))
                for name, splits in (("trained", trained), ("untrained", untrained))
            },
            title="Singular spectrum of the test images' features",
        )
