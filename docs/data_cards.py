"""Pages of data sets: their builders' docstrings and what `experiments.cards` measured."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.data_sets import DataSet
from experiments.report.markup import duration
from experiments.results import DATA_SETS, interval
from experiments.tables import table
from rml.assets import size


def data_page(found: Sequence[DataSet], cards: Mapping[str, Any]) -> str:
    """Writes the page of all data sets: a table."""
    rows = [
        (
            f"[`{one.name}`]({one.name}.md)",
            one.what,
            f"{sum(cards[one.name]['splits'].values()):,}" if one.name in cards else "",
            size(one.bytes) if one.archives else "in a package",
            one.licence,
        )
        for one in found
    ]
    return (
        "# Data sets\n\n"
        "Names that a config's `data.name` takes; the guide on data says how to read your own. "
        "Those that are made from archives are fetched by `make assets` and prepared on first use; "
        "`python -m experiments.systems data` says what is there.\n\n"
        + table(("name", "what it is", "examples", "archives", "licence"), rows)
    )


def data_set_page(one: DataSet, measured: Mapping[str, Any] | None, used: Sequence[str]) -> str:
    """Writes the page of a data set: what it is, what it holds, how hard it is.

    Args:
      one: The data set.
      measured: What `experiments.cards` measured of it, if it did.
      used: Keys of the systems whose configs name it.

    Returns:
      Markdown.
    """
    text = re.sub(r"^(Ground truth|Splits): (\w)", _lead, one.text, flags=re.MULTILINE)
    source = (
        f"Made from the archives {', '.join(f'`{name}`' for name in one.archives)} "
        f"({size(one.bytes)}; {one.licence}), which "
        f"`python -m rml.assets {' '.join(one.archives)}` fetches."
        if one.archives
        else "A package that is installed carries it."
    )
    parts = [f"# {one.name}\n", f"{one.what}\n", f"{text}\n", f"{source}\n"]
    if used:
        links = ", ".join(f"[{key}](../systems/{key}.md)" for key in used)
        parts.append(f"Systems whose configs name it: {links}.\n")
    if measured is None:
        return "\n".join([*parts, "Not measured; `python -m experiments.cards` does it.\n"])
    picture = f"../results/{DATA_SETS}/{one.name}.png"
    parts += [f"![{one.name}]({picture})\n\n*{measured['picture']}*\n", "## What it holds\n"]
    splits = [
        (f"`{name}`", f"{measured['splits'][name]:,}")
        for name in ("train", "validation", "test")
        if name in measured["splits"]
    ]
    fields = [(f"`{name}`", kind) for name, kind in measured["fields"].items()]
    parts += [table(("split", "examples"), splits), table(("field", "what it holds"), fields)]
    parts += [" ".join(left_out(measured)) + "\n", "## How hard it is\n", difficulty(measured)]
    return "\n".join([*parts, "## How it was measured\n", conditions(measured)])


def _lead(start: re.Match[str]) -> str:
    return f"**{start[1]}.** {start[2].upper()}"


def left_out(measured: Mapping[str, Any]) -> Iterable[str]:
    """Sentences on the examples of a data set that are left out, and on those that repeat."""
    dropped, repeated = measured["left_out"], measured["repeated"]
    if dropped:
        near = dropped["near_copies"]
        parts = (f"{near[split]:,} of {split}" for split in ("validation", "test"))
        yield (
            f"Left out: {dropped['blank']:,} drawings that show nothing or cannot be drawn, and "
            f"near copies of training images, {' and '.join(parts)}."
        )
    if repeated is not None:
        what = (
            "have the pixels of a training image"
            if "image" in measured["fields"]
            else "nearly repeat the text of a training example or of an earlier test example"
        )
        yield f"Of {measured['splits']['test']:,} test examples {repeated:,} {what}."


def difficulty(measured: Mapping[str, Any]) -> str:
    """Writes the table of what baselines reach on a data set."""
    rows = [
        (
            one["task"],
            one["baseline"] + (f" ({one['chosen']})" if one["chosen"] else ""),
            f"{one['metric']} {interval(one['value'], one['low'], one['high'])}",
            f"{one['train']:,}",
            f"{one['test']:,}",
        )
        for one in measured["difficulty"]
    ]
    head = ("task", "baseline", "mean (95% interval)", "fitted or searched", "test examples")
    return table(head, rows)


def conditions(measured: Mapping[str, Any]) -> str:
    """Writes what preparing a data set took and under what conditions it was measured."""
    prepared = measured["prepared"]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    version = "/".join(filter(None, [measured["config"], measured["version"]]))
    neighbours = (
        " Neighbours are the nearest by cosine, pixels and features less their mean; the features "
        "are those of a network trained on ImageNet, of images brought to 64 pixels."
        if "image" in measured["fields"]
        else ""
    )
    memory = (
        f", {size(prepared['peak_bytes'])} of memory at most (Python and libraries included)"
        if "peak_bytes" in prepared
        else ""
    )
    return (
        f"Version {version}: prepared in {duration(prepared['seconds'])}, "
        f"{size(prepared['bytes'])} on disk{memory}. "
        f"Measured in {duration(measured['seconds'])} on {measured['device']}; commit "
        f"{measured['commit'][:12]}, {measured['finished']}; {versions}.\n\n"
        "Baselines are fitted once. Intervals are a bootstrap over test examples; options in "
        f"brackets were chosen on validation examples.{neighbours}\n"
    )
