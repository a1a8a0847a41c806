"""How the models of the recipe on harmonic series learn where tokens stand, and what reads."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.core import FrozenDict

from rml.attention import attention_of, distance_laws
from rml.models.attention import Attend, attend


class Variant(NamedTuple):
    """How a model learns where tokens stand.

    Attributes:
      rotary: Whether queries and keys are rotated.
      law: Options of `rml.attention.distance_laws`; None where logits do not fall.
    """

    rotary: bool
    law: Mapping[str, Any] | None = None


def variants(strength: float) -> dict[str, Variant]:
    """What is compared, by name; slopes that fall are multiplied by the strength."""

    def law(form: str, slopes: str) -> dict[str, Any]:
        return {"form": form, "slopes": slopes, "strength": strength}

    return {
        "rope": Variant(True),
        "nope": Variant(False),
        "alibi": Variant(False, law("alibi", "geometric") | {"strength": 1.0}),
        "rope_alibi": Variant(True, law("alibi", "geometric") | {"strength": 1.0}),
        "bias": Variant(True, law("bias", "harmonic")),
        "bias_geometric": Variant(True, law("bias", "geometric")),
        "factor": Variant(True, law("factor", "harmonic")),
        "factor_geometric": Variant(True, law("factor", "geometric")),
    }


def unrotated(config: Any) -> Any:
    """The config of models whose queries and keys are not rotated: no position turns any angle."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.model.rope_scaling = FrozenDict(rope_type="linear", factor=float("inf"))
    return own


def learning(config: Any, variant: Variant) -> Attend:
    """What attends in training: a matrix of queries and keys, which is fast for short windows."""
    if variant.law is None:
        return attend
    return functools.partial(attend, **distance_laws(config.model.heads, **variant.law)._asdict())


def reading(variant: Variant) -> Attend:
    """What attends to long windows, a block at a time; of the same function as `learning`."""
    return attention_of("exact") if variant.law is None else attention_of("harmonic", **variant.law)
