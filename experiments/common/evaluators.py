"""How features of images are judged: neighbours, a linear probe, their spectrum."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.common import figures
from experiments.common.encoders import Features
from experiments.common.images import all_batches, open_images, warn_of_oddities
from rml import data, evaluation
from rml.data import augment
from rml.data.given import GivenImages, in_slices
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.training import make_mesh
from rml.training.processes import is_primary, largest

log = logging.getLogger("rml.experiments")

LARGE, SMALL = 64, 16
"""Longest side, in pixels, of images whose raw pixels are features, and the side of larger ones."""

Labelled = tuple[Array, Array]
"""Features [n, d] and labels [n]."""
Splits = tuple[Labelled, Labelled]
"""Features and labels of the training images, and of the test images."""


def encode(encoder: Callable[[Any], Any], source: data.Source, *, batch_size: int) -> Labelled:
    """Features and labels of a source, in its order.

    Devices and processes of an `ImageEmbedder`'s mesh share them; another function of images is
    applied by every process to all.
    """
    if isinstance(encoder, ImageEmbedder):
        images = in_slices(source)
        features = jnp.asarray(encoder(images))
        if isinstance(images, GivenImages):  # each process has read the labels of its own
            return features, jnp.asarray(largest(images.labels))
        return features, jnp.asarray(source.arrays()["label"])
    return evaluation.extract_features(
        encoder, all_batches(source, batch_size), batch_size=batch_size
    )


def pixels(images: Any) -> Array:
    """The images themselves, or a user's vectors, as features."""
    return augment.to_float(jnp.asarray(images)).reshape(len(images), -1)


def reduced_pixels(images: Any) -> Array:
    """Takes pixels as features that fit into memory: averages sides above `LARGE` to `SMALL`.

    ImageNet's training images of 256 x 256 pixels are 1 TB of floats. Of 16 x 16 pixels they take
    less memory than features of a ResNet-50. Images with shorter sides are taken as they are.
    """
    n, *sides, channels = images.shape
    fitting = [side if side <= LARGE else SMALL for side in sides]
    if fitting == sides:
        return pixels(images)
    floats = augment.to_float(jnp.asarray(images))
    return pixels(jax.image.resize(floats, (n, *fitting, channels), "linear", antialias=True))


class ImageEvaluator:
    """Measures features on one data set, by the same neighbours and probe for every encoder."""

    def __init__(self, model: Any, config: Any, *, labelled: bool = False):
        """Prepares the encoder; the data is opened when it is first needed.

        Args:
          model: A module with a method `features(images)`.
          config: The run's config, of which `data`, `evaluation` and `seed` are read.
          labelled: Whether the experiment needs labels of the training images.
        """
        self.config, self.options, self.seed = config, config.evaluation, config.seed
        self._needs_labels, self._warned = labelled, False
        self._function = Features(model)

    @cached_property
    def mesh(self) -> Mesh:
        """The run's devices, which share the work."""
        return make_mesh(self.config.mesh)

    @cached_property
    def train(self) -> data.Source:
        """Training source, which is also the neighbours' memory and the probe's training set."""
        return open_images(self.config, "train", labelled=self._needs_labels)

    @cached_property
    def test(self) -> data.Source:
        """Test source."""
        return open_images(self.config, "test")

    @property
    def labelled(self) -> bool:
        """Whether neighbours and probes can be judged."""
        return self.train.labelled and self.test.labelled

    def check(self) -> None:
        """Opens both sources: what cannot be read fails before the training, not after it.

        What is odd in them is a warning.

        Raises:
          UserError: As `open_images`, or there is one test image, which has no neighbours.
        """
        if len(self.test) < 2:
            raise UserError(
                f"data.test={self.test.split!r} of {self.test.name} holds {len(self.test)} image, "
                "expected at least 2"
            )
        unlabelled = (
            f"{self.config.data.name} has no labels: nearest neighbours and probes are left out, "
            "uniformity, spectra and t-SNE are not"
        )
        others = [] if self.labelled else [unlabelled]
        if self.labelled and (k := self.options.get("knn_k", 0)) > len(self.train):
            others.append(
                f"evaluation.knn_k is {k}, more than the training images: all "
                f"{len(self.train)} are neighbours"
            )
        warn_of_oddities(self.train, self.test, *others)

    def features(self, variables: Any) -> Splits:
        """Features and labels of the training and test images.

        Args:
          variables: The model's variables, which stay as they lie on the mesh.
        """
        size = self.options.batch_size
        return self.extract(ImageEmbedder(self._function, variables, size, self.mesh))

    def extract(self, encoder: Callable[[Any], Any]) -> Splits:
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
                mesh=self.mesh,
            )
        )  # fmt: skip

    def knn_of(self, state: Any) -> dict[str, float]:
        """Evaluates a state during training; without labels by the uniformity of its features."""
        features = self.features(state.variables)
        if not self._warned and evaluation.collapsed(features[1][0]):
            self._warned = True
            if is_primary():
                log.warning("the encoder has collapsed: features of all test images are equal")
        if self.labelled:
            return {"knn": self.knn(features)}
        return {"uniformity": float(evaluation.uniformity(features[1][0]))}

    def probe(self, features: Splits) -> float:
        """Accuracy of a linear probe."""
        (train, train_labels), (test, test_labels) = features
        return float(
            evaluation.linear_probe(
                train, train_labels, test, test_labels,
                num_classes=self.train.num_classes, key=jax.random.key(self.seed),
                mesh=self.mesh,
            ).accuracy
        )  # fmt: skip

    def compare(self, trained: Splits, untrained: Splits) -> dict[str, float]:
        """Compares trained features with those of the untrained encoder and with raw pixels.

        Of large images the pixels are averaged, see `reduced_pixels`.

        Args:
          trained: Features of the trained encoder, as `features` returns them.
          untrained: Features of the untrained one, as `features` returns them.

        Returns:
          Accuracy of neighbours and probe for all three, margins of the trained encoder, and the
          diagnostics of its spectrum on the test images, which alone need no labels.
        """
        metrics = self.compare_accuracies(trained, untrained) if self.labelled else {}
        test, test_untrained = trained[1][0], untrained[1][0]
        metrics["rankme"] = float(evaluation.rankme(test))
        metrics["rankme_untrained"] = float(evaluation.rankme(test_untrained))
        metrics["participation_ratio"] = float(evaluation.participation_ratio(test))
        metrics["uniformity"] = float(evaluation.uniformity(test))
        return metrics

    def compare_accuracies(self, trained: Splits, untrained: Splits) -> dict[str, float]:
        """Accuracies of `compare` and the margins of the trained encoder."""
        metrics: dict[str, float] = {}
        named = {"": trained, "_untrained": untrained, "_pixels": self.extract(reduced_pixels)}
        for suffix, features in named.items():
            metrics[f"knn{suffix}"] = self.knn(features)
            metrics[f"linear_probe{suffix}"] = self.probe(features)
        for kind in ("knn", "linear_probe"):
            for other in ("untrained", "pixels"):
                metrics[f"{kind}_over_{other}"] = metrics[kind] - metrics[f"{kind}_{other}"]
            absent = metrics[f"{kind}_untrained"] - metrics[f"{kind}_pixels"]
            metrics[f"{kind}_untrained_over_pixels"] = absent
        # A probe on pixels alone is a weak opponent where neighbours read them better.
        best = max(metrics["knn_pixels"], metrics["linear_probe_pixels"])
        for own in ("linear_probe", "linear_probe_untrained"):
            metrics[f"{own}_over_best_of_pixels"] = metrics[own] - best
        return metrics

    def draw(self, folder: Callable[[str], Path], trained: Splits, untrained: Splits) -> None:
        """Draws the features: 2-D embedding by class, if there are any, and singular spectrum."""
        features, labels = (part[:2000] for part in trained[1])
        names = self.test.class_names
        if not self.labelled:
            labels, names = jnp.zeros_like(labels), ("",)
        figures.embedding(
            folder("embedding.png"),
            np.asarray(evaluation.embed_2d(features, method="tsne")),
            np.asarray(labels),
            names,
            title="t-SNE of the test images' features",
        )
        tested = {"trained": trained[1][0], "untrained": untrained[1][0]}
        flat = [name for name, own in tested.items() if evaluation.collapsed(own)]
        spectra = {
            name: np.asarray(evaluation.singular_values(own, center=True))
            for name, own in tested.items()
            if name not in flat  # nothing but rounding
        }
        if spectra:
            title = "Singular spectrum of the test images' features"
            note = f"\n{flat[0]}: collapsed" if flat else ""
            figures.spectrum(folder("spectrum.png"), spectra, title=title + note)
