"""WordNet 3.0: glosses, supersenses, hypernyms and examples."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Fetched

PARTS = ("noun", "verb", "adj", "adv")
SUPERSENSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact",
    "noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event",
    "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object",
    "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process",
    "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition",
    "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""Names of the lexicographers' files, by their number (WordNet's lexnames(5))."""
POSITION = re.compile(r"\((a|p|ip)\)$")  # where an adjective may stand, after its lemma
HYPERNYMS = ("@", "@i")  # of a class, of an instance


class Wordnet(Fetched):
    """Synsets of WordNet 3.0 with gloss, supersense, hypernyms and examples (Princeton, 2006).

    A synset is found by its `id` (part of speech and offset).

    Ground truth: WordNet's lexicographers.

    Splits: by synset; hypernyms may be in another split, and glosses that repeat others are left
    in.
    """

    name = "wordnet"
    ASSETS = ("wordnet",)

    def _features(self) -> dict[str, Any]:
        texts = tfds.features.Sequence(tfds.features.Text())
        return {
            "id": tfds.features.Text(),
            "gloss": tfds.features.Text(),
            "lemmas": texts,
            "examples": texts,
            "hypernyms": texts,
            "label": tfds.features.ClassLabel(names=list(SUPERSENSES)),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((synset["id"], synset) for synset in read())


def read() -> Iterator[dict[str, Any]]:
    """Reads all synsets, in the order of WordNet's files."""
    for path, content in assets.members("wordnet", *(f"*/wordnet/data.{part}" for part in PARTS)):
        del path
        for line in content.decode().splitlines():
            if not line.startswith(" "):  # the licence, at the top of each file
                yield parse(line)


def parse(line: str) -> dict[str, Any]:
    """Reads a synset from a line of a data file (WordNet's wndb(5))."""
    fields, _, comment = line.partition("|")
    offset, supersense, part, count, *rest = fields.split()
    words = int(count, 16)
    lemmas = [
        re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in rest[: 2 * words : 2]
    ]
    pointers = rest[2 * words + 1 :][: 4 * int(rest[2 * words])]
    relations = np.array(pointers, dtype=object).reshape(-1, 4)
    return {
        "id": part + offset,
        "gloss": re.split(r';\s*"', comment.strip())[0].strip(),
        "lemmas": lemmas,
        "examples": re.findall(r'"([^"]+)"', comment),
        "hypernyms": [of + target for kind, target, of, _ in relations if kind in HYPERNYMS],
        "label": int(supersense),
    }
