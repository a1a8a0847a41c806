"""Measures data sets for their cards: what they hold, what preparing costs, how hard they are.

`python -m experiments.cards [NAME...] [--out=results/data]` prepares each of these data sets anew,
all of them if none is named, and writes `NAME.json` with a picture of the same name. The site makes
a page of each (`docs/generate.py`).
"""

if __name__ == "__main__":
    from experiments.interrupts import stop_at_once

    stop_at_once()

import importlib.metadata
import itertools
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.commit import current_commit
from experiments.common.figures import COLUMN, canvas, histogram, image_grid
from experiments.difficulty import Scores, of_classes, of_flights, of_images, of_ratings
from experiments.interrupts import raise_interrupts
from experiments.record import processor, shrink
from experiments.results import DATA_SETS, number
from experiments.search_difficulty import of_manuals, of_search
from experiments.startup import LocalPath, Parser, check_writable
from rml.data import builders
from rml.data.duplicates import near_duplicates
from rml.errors import UserError, unknown
from rml.training.durable import write_json

VERSIONED = ("bm25s", "jax", "numpy", "scikit-learn", "resvg-py")
PREPARE = """
import sys
from pathlib import Path
from rml.data import builders
builders.prepare(sys.argv[1], Path(sys.argv[2]))
status = Path("/proc/self/status")
print(status.read_text() if status.exists() else "")
"""
PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
"""Linux's most memory of a process; what `getrusage` says counts its parent's before the start."""
CHARACTERS = 500  # of a text that is compared with others
GRID = (4, 10)  # rows and columns of a picture of examples
STYLES = ("noto", "fluent")  # of emoji, whose licences need no attribution and no share alike
TEXTS = {
    "debian": "description", "manuals": "text", "pydocs": "docstring", "questions": "text",
    "ratings": "text", "sotu": "text", "spam": "text", "tasks": "prompt", "wiki_vital": "text",
    "wiki_vital_es": "text", "wiki_vital_fr": "text", "wordnet": "gloss",
}  # fmt: skip
"""The text that an example of a data set is about."""
NUMBERS = {
    "flights": ("delay in minutes, 300 for longer ones", lambda row: min(row["delay"], 300.0)),
    "ratings": ("mean rating", lambda row: row["mean"]),
}
"""What is drawn of data sets whose target is a number."""


BASELINES: dict[str, tuple[Callable[[Any], Scores], ...]] = {
    **dict.fromkeys(("digits", "mnist5k", "glyphs", "fashion_mnist"), (of_images,)),
    **dict.fromkeys(("clipart", "emoji", "icons", "units"), (of_images,)),
    **dict.fromkeys(("spam", "wiki_vital_es", "wiki_vital_fr"), (of_classes,)),
    "debian": (
        partial(of_classes, text="description"),
        partial(of_search, asked="synopsis", found="description"),
    ),
    "flights": (of_flights,),
    "manuals": (of_classes, of_manuals),
    "pydocs": (partial(of_search, asked="docstring", found="code"),),
    "questions": (of_classes, partial(of_classes, label="coarse")),
    "ratings": (of_ratings,),
    "sotu": (partial(of_classes, label="party"),),
    "tasks": (partial(of_classes, text="prompt"),),
    "wiki_vital": (
        of_classes,
        partial(of_search, asked="description", found="text", masked="title"),
    ),
    "wordnet": (partial(of_classes, text="gloss"),),
}
"""What is measured of each data set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures data sets one after the other; returns the exit code."""
    parser = Parser(prog="python -m experiments.cards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, all if none is named")
    parser.add_argument(
        "--out", action=LocalPath, default=Path("results", DATA_SETS), help="folder"
    )
    try:
        options = parser.parse_args(argv)
        check_writable(options.out, f"--out={options.out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = 0
    for name in options.names or builders.KNOWN:
        try:
            write_card(name, options.out)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    return failed


def write_card(name: str, out: Path) -> None:
    """Measures one data set, writes its file and picture, and says what came out."""
    if name not in builders.KNOWN:
        raise unknown("data set", name, builders.KNOWN)
    with tempfile.TemporaryDirectory() as scratch:
        cost = prepare(name, Path(scratch))
        builder = tfds.builder_from_directory(Path(scratch, builders.KNOWN[name].directory()))
        card = measure(name, builder)
        card["prepared"] |= cost
        card["picture"] = draw(out / f"{name}.png", name, builder)
    write_json(out / f"{name}.json", card)
    print(f"{out / name}.json: {card['splits']}, {card['seconds']:.0f} s", flush=True)
    for one in card["difficulty"]:
        print(
            f"  {one['task']}, {one['baseline']}: {one['metric']} {number(one['value'])}",
            flush=True,
        )


def prepare(name: str, data_dir: Path) -> dict[str, float]:
    """Prepares a data set in a process of its own.

    Returns:
      The `seconds` that it took and, on Linux, its `peak_bytes` of memory: Python, libraries and
      mapped files included.

    Raises:
      UserError: It cannot be prepared.
    """
    start = time.perf_counter()
    command = [sys.executable, "-c", PREPARE, name, str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    cost = {"seconds": round(time.perf_counter() - start, 1)}
    if peak := PEAK.search(done.stdout):
        cost["peak_bytes"] = int(peak[1]) * 1024
    return cost


def measure(name: str, builder: Any) -> dict[str, Any]:
    """Counts and baselines of a prepared data set."""
    start = time.perf_counter()
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    scores = [one._asdict() for run in BASELINES[name] for one in run(builder)]
    return {
        "data_set": name,
        "version": str(builder.version),
        "config": builder.builder_config.name if builder.builder_config else "",
        "splits": splits,
        "fields": {key: field(feature) for key, feature in builder.info.features.items()},
        "left_out": dict(builder.info.metadata or {}),
        "repeated": repeated(name, builder),
        "prepared": {
            "bytes": sum(file.stat().st_size for file in Path(builder.data_path).iterdir()),
        },
        "difficulty": scores,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"python": platform.python_version()}
        | {one: importlib.metadata.version(one) for one in VERSIONED},
        "device": processor(),
        "commit": current_commit(),
        "finished": datetime.now(UTC).date().isoformat(),
    }


def field(feature: Any) -> str:
    """What a feature holds, in words."""
    if isinstance(feature, tfds.features.ClassLabel):
        return f"one of {feature.num_classes} classes"
    if isinstance(feature, tfds.features.Sequence):
        return f"any number of: {field(feature.feature)}"
    if isinstance(feature, tfds.features.FeaturesDict):
        kinds = dict.fromkeys(map(field, feature.values()))
        return f"{', '.join(kinds)}; by {', '.join(sorted(feature))}"
    if isinstance(feature, tfds.features.Text):
        return "text"
    kind = np.dtype(feature.np_dtype).name
    return f"{kind} {list(feature.shape)}" if feature.shape else kind


def repeated(name: str, builder: Any) -> int | None:
    """How many test examples repeat another; None where nothing tells.

    An image repeats a training image where all pixels are equal; a text a training text or an
    earlier test text where three words in a row of their first `CHARACTERS` characters say so.
    """
    if name not in TEXTS and "image" not in builder.info.features:
        return None
    key = TEXTS.get(name, "image")
    train, test = (
        [row[key] for row in builder.as_data_source(split)] for split in ("train", "test")
    )
    if key == "image":
        known = {image.tobytes() for image in train}
        return sum(image.tobytes() in known for image in test)
    texts = [text.decode()[:CHARACTERS] for text in (*train, *test)]
    return int(near_duplicates(texts)[len(train) :].sum())


def draw(path: Path, name: str, builder: Any) -> str:
    """Draws training examples that may be shown, or how sizes or targets are distributed.

    Returns:
      What the picture shows.
    """
    rows = builder.as_data_source("train")
    if name == "units":
        sizes = Counter(row["label"] for row in rows)
        histogram(path, {"train": list(sizes.values())}, "training examples of a class", "classes")
        caption = "Sizes of the classes. Examples are not shown: the art is under the GPL."
    elif "image" in builder.info.features:
        styles = [builder.info.features["style"].str2int(one) for one in STYLES if name == "emoji"]
        may = (row["image"] for row in rows if not styles or row["style"] in styles)
        images = list(itertools.islice(may, GRID[0] * GRID[1]))
        image_grid(path, [images[at : at + GRID[1]] for at in range(0, len(images), GRID[1])])
        caption = (
            f"Training examples, drawn by {' and '.join(STYLES)}."
            if styles
            else "Training examples."
        )
    elif name in NUMBERS:
        label, value = NUMBERS[name]
        histogram(path, {"train": [value(row) for row in rows]}, label, "training examples")
        caption = "Distribution of the target."
    else:
        lengths = np.sort([len(row[TEXTS[name]].split()) for row in rows])
        with canvas(path, (COLUMN, 0.7 * COLUMN)) as figure:
            ax = figure.add_subplot()
            ax.plot(lengths, np.arange(1, len(lengths) + 1) / len(lengths))
            ax.set(xscale="log", xlabel=f"words of {TEXTS[name]}", ylabel="share of train")
            ax.grid(visible=True)
            leading = "125" if lengths[-1] < 100 * lengths[0] else "1"  # digits of the labels
            for format_ in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
                format_(lambda words, _: f"{words:,.0f}" if f"{words:.0e}"[0] in leading else "")
        caption = "Share of the training texts that have at most so many words."
    path.write_bytes(shrink(path.read_bytes()))
    return caption


if __name__ == "__main__":
    raise_interrupts()
    sys.exit(main())
