"""Classes that come after training: a vector each, made from their examples without optimising."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.errors import UserError, unknown
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_count, check_indices, check_shapes
from rml.ops.similarity import normalize


def class_prototypes(
    features: Float[Array, "n d"], labels: Int[Array, " n"], *, num_classes: int
) -> Float[Array, "c d"]:
    """Makes every class's vector: the mean of its unit rows, scaled to unit length.

    Classified by cosines to them rows have the classes of `rml.fewshot.simple_shot` with the
    options `kind="L2N"` and `unit_prototypes=True`.

    Args:
      features: Rows, not normalised.
      labels: Class of each row.
      num_classes: Number of classes c.

    Returns:
      The vectors; zero for a class without rows, or whose rows cancel.

    Raises:
      ValueError: If shapes do not fit, there is no class or, outside `jit`, a label is out of
        range.

    Source: Pereira et al., arXiv:2102.03243, weights of novel classes.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    check_count(1, num_classes=num_classes)
    check_indices("labels", labels, num_classes)
    return normalize(jax.ops.segment_sum(normalize(features), labels, num_classes))


@full_precision
def cosine_logits(
    features: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    *,
    scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "n k"]:
    """Computes cosines of rows to class vectors, times a scale, which no prediction depends on.

    Raises:
      ValueError: If shapes do not fit, or `scale` is not above 0.

    Source: Pereira et al., arXiv:2102.03243.
    """
    check_shapes(features=(features, "n d"), prototypes=(prototypes, "k d"))
    check_above_0(scale=scale)
    return scale * (normalize(features) @ normalize(prototypes).T)


@dataclasses.dataclass(frozen=True)
class OpenClassifier:
    """A classifier by class vectors, to which classes are added, and from which they are taken.

    It is a value: each change returns another one. Sums and numbers of examples are kept, so that
    examples may come in any number of parts and the vector is that of all of them.

        known = OpenClassifier.trained(("cat", "dog"), vectors)
        more = known.add_class("fox", encoder(images_of_foxes))
        more.predict(encoder(images))

    Attributes:
      names: Names of the classes.
      sums: Sums of the unit rows of each class's examples, or its trained vector.
      counts: Number of examples of each class, 0 of a trained one.

    Source: Pereira et al., arXiv:2102.03243, joint classification of trained and novel classes.
    """

    names: tuple[str, ...]
    sums: Float[Array, "k d"]
    counts: tuple[int, ...]

    @classmethod
    def empty(cls, width: int) -> "OpenClassifier":
        """Makes one without classes, of rows of a width.

        Raises:
          ValueError: If the width is no whole number above 0.
        """
        check_count(1, width=width)
        return cls((), jnp.zeros((0, width)), ())

    @classmethod
    def trained(cls, names: Sequence[str], prototypes: Float[Array, "k d"]) -> "OpenClassifier":
        """Makes one of the trained classes, of a vector each.

        Args:
          names: Names of the classes.
          prototypes: Their vectors, of any length.

        Raises:
          UserError: Names and vectors differ in number, a name stands twice, or a vector is zero or
            not finite.
        """
        if len(names) != len(prototypes):
            raise UserError(f"{len(names)} names and {len(prototypes)} vectors, expected one each")
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise UserError(f"the name {twice[0]!r} stands twice, expected distinct names")
        unit = normalize(jnp.asarray(prototypes))
        for name, row in zip(names, np.asarray(unit), strict=True):
            _check_direction(name, row)
        return cls(tuple(names), unit, (0,) * len(names))

    @property
    def prototypes(self) -> Float[Array, "k d"]:
        """The class vectors, of unit length."""
        return normalize(self.sums)

    def add_class(self, name: str, features: Float[Array, "n d"]) -> "OpenClassifier":
        """Adds a class by its examples.

        Raises:
          UserError: There is such a class, no example, rows of another width or without a
            direction in common: zero, not finite, or such as cancel.
        """
        if name in self.names:
            raise UserError(
                f"the class {name!r} is known; expected another name, or add_examples for more "
                "examples of it"
            )
        total = self._sum(name, features)
        return OpenClassifier(
            (*self.names, name), jnp.concatenate([self.sums, total]), (*self.counts, len(features))
        )

    def add_examples(self, name: str, features: Float[Array, "n d"]) -> "OpenClassifier":
        """Adds examples to a class that was added by examples.

        Raises:
          UserError: There is no such class, it has a trained vector, or as in `add_class`.
        """
        i = self._index(name)
        if not self.counts[i]:
            raise UserError(
                f"the class {name!r} has a trained vector, which is no mean of examples; expected "
                "a class of add_class, or remove_class first"
            )
        sums = self.sums.at[i].add(self._sum(name, features, self.sums[i])[0])
        counts = (*self.counts[:i], self.counts[i] + len(features), *self.counts[i + 1 :])
        return dataclasses.replace(self, sums=sums, counts=counts)

    def remove_class(self, name: str) -> "OpenClassifier":
        """Takes a class away.

        Raises:
          UserError: There is no such class.
        """
        i = self._index(name)
        return OpenClassifier(
            self.names[:i] + self.names[i + 1 :],
            jnp.delete(self.sums, i, axis=0),
            self.counts[:i] + self.counts[i + 1 :],
        )

    def predict(self, features: Float[Array, "n d"]) -> list[str]:
        """Names the class of each row: that of the largest cosine.

        Raises:
          UserError: There is no class, or the rows are of another width.
        """
        if not self.names:
            raise UserError("there is no class to choose from, expected add_class first")
        self._check_width(features)
        best = jnp.argmax(cosine_logits(features, self.prototypes), axis=1)
        return [self.names[i] for i in best.tolist()]

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise unknown("class", name, self.names)
        return self.names.index(name)

    def _check_width(self, features: Array) -> None:
        if features.ndim != 2 or features.shape[1] != self.sums.shape[1] or not len(features):
            raise UserError(
                f"features have the shape {features.shape}, expected rows of "
                f"{self.sums.shape[1]} numbers, at least one"
            )

    def _sum(self, name: str, features: Array, start: Array | float = 0.0) -> Float[Array, "1 d"]:
        self._check_width(features)
        total = jnp.sum(normalize(jnp.asarray(features)), axis=0)
        _check_direction(name, np.asarray(start + total))
        return total[None]


def _check_direction(name: str, vector: np.ndarray) -> None:
    if not np.isfinite(vector).all() or not vector.any():
        raise UserError(
            f"examples or vector of the class {name!r} have no direction: zero, infinite or NaN"
        )
