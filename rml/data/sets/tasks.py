"""Some 220 short tasks in words, each with many prompts and answers."""

import functools
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data.duplicates import normalized
from rml.data.packaged import Fetched

ROOT = "evals/registry/data/"
LEAST = 60  # distinct rows of a task
MOST = 500  # rows of a task that are kept
PROMPT, ANSWER = 1200, 200  # characters, of the median row
DROPPED = re.compile(r"raven|maze|diabetes")  # pictures and medicine in numbers
CHOICES = range(2, 13)  # distinct answers of a task of choice


class Tasks(Fetched):
    """Prompts and answers of short tasks in words from the registry of OpenAI's evals.

    `label` is the task and `choice` says whether it has 2 to 12 different answers. At most 500
    rows of a task. It is an evaluation set: never call it clean of contamination.

    Ground truth: the answers that authors of tasks call ideal; of several the first.

    Splits: prompts of the same words in a task stay together.
    """

    name = "tasks"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "2.0.0": "Prompts that differ in case and punctuation alone are in one split.",
    }
    ASSETS = ("evals",)

    def _features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        return {
            "system": text,
            "prompt": text,
            "answer": text,
            "choice": tfds.features.Scalar(dtype=np.bool_),
            "label": tfds.features.ClassLabel(names=sorted(read())),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return _rows()


@functools.cache
def read() -> dict[str, list[tuple[str, str, str]]]:
    """Reads distinct rows (system, prompt, answer) of each task that is short enough."""
    found: dict[str, dict[tuple[str, str], tuple[str, str, str]]] = defaultdict(dict)
    for path, content in assets.members("evals", f"{ROOT}*.jsonl"):
        task = path.removeprefix(ROOT).split("/")[0]
        if DROPPED.search(task) or re.search(r"few_?shot", path):
            continue
        for line in content.decode("utf-8", "replace").splitlines():
            row = _row(line)
            if row is not None:
                found[task].setdefault(row[1:], row)
    return {
        task: list(rows.values())[:MOST]
        for task, rows in sorted(found.items())
        if len(rows) >= LEAST and _short(rows.values())
    }


def _row(line: str) -> tuple[str, str, str] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or "input" not in row or "ideal" not in row:
        return None
    given, answer = row["input"], row["ideal"]
    while isinstance(answer, list) and answer:
        answer = answer[0]
    answer = answer if isinstance(answer, str) else json.dumps(answer)
    if isinstance(given, str):
        return "", given, answer
    said: dict[bool, list[str]] = {True: [], False: []}
    for message in given:
        system = isinstance(message, dict) and message.get("role") == "system"
        content = message.get("content", "") if isinstance(message, dict) else message
        said[system].append(str(content))
    return "\n".join(said[True]), "\n".join(said[False]), answer


def _short(rows: Iterable[tuple[str, str, str]]) -> bool:
    rows = list(rows)
    prompt = statistics.median(len(system) + len(prompt) for system, prompt, _ in rows)
    return prompt <= PROMPT and statistics.median(len(answer) for *_, answer in rows) <= ANSWER


def _rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for task, rows in read().items():
        choice = len({answer for *_, answer in rows}) in CHOICES
        for system, prompt, answer in rows:
            yield (
                f"{task} {normalized(prompt) or prompt}",
                {
                    "system": system,
                    "prompt": prompt,
                    "answer": answer,
                    "choice": choice,
                    "label": task,
                },
            )
