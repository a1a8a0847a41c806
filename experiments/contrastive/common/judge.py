"""How features are judged: neighbours, a linear probe, their spectrum."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import figures
from experiments.contrastive.common.model import ProjectedEncoder
from rml import data, evaluation
from rml.data import augment
from rml.errors import UserError

Splits = tuple[tuple[Array, Array], tuple[Array, Array]]
"""Features and labels of the training images, and of the test images."""


def open_split(config: Any, split: str) -> data.Source:
    """The `train` or `test` source of a config, its images brought to `data.image_shape`.

    Args:
      config: The run's config.
      split: Key of `config.data` that holds the split.

    Returns:
      The source.

    Raises:
      UserError: The data cannot be read, or is not of the config's channels and type.
    """
    shape = tuple(config.data.image_shape)
    source = data.load(
        config.data.name, config.data[split], data_dir=config.data.data_dir, image_size=shape[:2]
    )
    image = source[0]["image"]
    if image.shape != shape or image.dtype != config.data.image_dtype:
        raise UserError(
            f"images of {config.data.name} are {image.dtype}{list(image.shape)}, expected "
            f"{config.data.image_dtype}{list(shape)}: set --config.data.image_shape and "
            "--config.data.image_dtype"
        )
    return source


class Judge:
    """Measures features on one data set, by the same neighbours and probe for every encoder."""

    def __init__(self, model: ProjectedEncoder, config: Any):
        """Prepares the encoder; the data is opened when it is first needed.

        Args:
          model: The encoder.
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
        return open_split(self.config, "train")

    @cached_property
    def test(self) -> data.Source:
        """Test source."""
        return open_split(self.config, "test")

    def batches(self, source: data.Source) -> Iterable[Mapping[str, np.ndarray]]:
        """All of a source once, in order."""
        return data.batches(
            source, batch_size=self.options.batch_size, seed=0,
            shuffle=False, repeat=False, drop_remainder=False,
        )  # fmt: skip

    def features(self, variables: Any) -> Splits:
        """Features and labels of the training and test images."""
        return self._extract(lambda images: self._encode(variables, images))

    def pixels(self) -> Splits:
        """The images themselves as features."""
        return self._extract(lambda x: augment.to_float(jnp.asarray(x)).reshape(len(x), -1))

    def _extract(self, encode: Callable[[Any], Array]) -> Splits:
        size = self.options.batch_size
        train, test = (
            evaluation.extract_features(encode, self.batches(source), batch_size=size)
            for source in (self.train, self.test)
        )
        return train, test

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
        """Trained features beside those of the same encoder untrained and beside raw pixels.

        Args:
          trained: As `features` returns them.
          untrained: Likewise.

        Returns:
          Accuracy of neighbours and probe for all three, margins of the trained encoder, and the
          diagnostics of its spectrum on the test images.
        """
        metrics: dict[str, float] = {}
        named = {"": trained, "_untrained": untrained, "_pixels": self.pixels()}
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
        """Figures of the features: 2-D embedding by class, singular spectrum."""
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
                "trained": np.asarray(evaluation.singular_values(trained[1][0], center=True)),
                "untrained": np.asarray(evaluation.singular_values(untrained[1][0], center=True)),
            },
            title="Singular spectrum of the test images' features",
        )
