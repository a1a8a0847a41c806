"""Tables of Markdown in which every number comes from `results/`.

`python -m experiments.tables [--check]` rewrites the blocks between `<!-- generated: NAME -->` and
`<!-- end generated -->` of README.md, WORKSPACE.md and docs/; `--check` names those that are stale.
A NAME is one of `BLOCKS`, `claims` with the key of a system: `<!-- generated: claims simclr -->`.
The line `Result: ...` of a measured config's docstring is generated too.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments.registry import ROOT
from experiments.report.markup import duration
from experiments.results import (  # fmt: skip
    RELATIONS,
    RESULT_LINE,
    changed_since,
    interval,
    not_measured,
    null,
    read_results,
    remarks,
    seeds,
    sentence,
)
from experiments.startup import Parser
from experiments.systems import System, read_systems
from rml.errors import UserError, unknown

OPEN, CLOSE = (
    r"(?P<open><!-- generated: (?P<name>[\w ]+?) -->\n)",
    "(?P<close><!-- end generated -->)",
)
BLOCK = re.compile(f"{OPEN}(?P<text>.*?){CLOSE}", re.DOTALL)
PILLARS = "Pillars"
LONGEST = 100
"""Characters of a line of code."""


def systems_table() -> str:
    """Every system: key, title with a link to the paper, area, what was found, its verdict."""
    measured = read_results()
    rows = [
        (f"`{system.key}`", paper(system), system.area, *found(system, measured))
        for system in read_systems().values()
    ]
    return table(("key", "system", "area", "headline", "verdict"), rows)


def pillars_table() -> str:
    """The pillars: what was found of each in a sentence, its verdict, its picture."""
    measured = read_results()
    rows = []
    for system in read_systems().values():
        if system.section == PILLARS:
            first = headline(system, measured)
            picture = first and picture_of(first.result)
            link = f"[picture]({picture.relative_to(ROOT)})" if picture else ""
            rows.append((paper(system), *found(system, measured), link))
    return table(("paper", "what was found (95% interval)", "verdict", ""), rows)


class Headline(NamedTuple):
    """What a system's evidence comes to: a claim of one of its results."""

    claim: Mapping[str, Any]
    result: Mapping[str, Any]


def headline(
    system: System, results: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Headline | None:
    """The claim that says what came of a system; None where it is not measured.

    Args:
      system: The system; where it names no headline, that is the first claim of its first config.
      results: Results of all systems by the stem of their config's file.
    """
    where, _, metric = system.headline.partition(": ")
    key, _, stem = where.partition("/")
    measured = results.get(key or system.key, {})
    if stem:
        measured = {stem: measured[stem]} if stem in measured else {}
    for result in in_order(measured, system).values():
        for claim in result["claims"]:
            if metric in ("", claim["metric"]):
                return Headline(claim, result)
    return None


def found(
    system: System, results: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> tuple[str, str]:
    """A system's headline in words and its verdict, or why there is none."""
    first = headline(system, results) if system.built else None
    if first is None:
        return "", "not measured" if system.built else "not built"
    return told(*first), first.claim["verdict"]


def told(claim: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A finding in words, and its mean and interval where the words do not have the interval."""
    words = sentence(claim, result)
    if claim["mean"] is None or not claim.get("says") or "{low" in claim["says"]:
        return words
    return f"{words}: {interval(claim['mean'], claim['low'], claim['high'])}"


def picture_of(result: Mapping[str, Any]) -> Path | None:
    """The committed picture of a result."""
    file = ROOT / "results" / result["system"] / f"{Path(result['config']).stem}.png"
    return file if file.is_file() else None


def in_order(
    results: Mapping[str, Mapping[str, Any]], system: System
) -> dict[str, Mapping[str, Any]]:
    """The results of a system as it lists its configs, that of the claim first.

    Args:
      results: The system's results by the stem of their config's file.
      system: The system; results of configs that it does not list come last.
    """

    def place(stem: str) -> int:
        config, configs = results[stem]["config"], system.configs
        return configs.index(config) if config in configs else len(configs)

    return {stem: results[stem] for stem in sorted(results, key=place)}


def config_cell(result: Mapping[str, Any], system: System) -> str:
    """The config of a result; whether it was changed since, and why it is an extra if it is one."""
    extra = system.extras.get(result["config"], "")
    notes = [f"an extra: {extra}"] * bool(extra) + ["changed since"] * changed_since(result)
    return f"`{result['config']}`" + f" ({'; '.join(notes)})" * bool(notes)


def claims_table(key: str) -> str:
    """The claims of a system over all of its configs, each with what was measured and its verdict.

    Claims that a recipe states today and that no run of a measured config has stated come last.

    Args:
      key: Key of the system.

    Raises:
      UserError: There is no such system.
    """
    systems = read_systems()
    if key not in systems:
        raise unknown("system", key, systems)
    system = systems[key]
    measured = in_order(read_results().get(key, {}), system).values()
    rows = [
        (
            claim["statement"],
            ": ".join(filter(None, [claim["verdict"], remarks(claim, result)])),
            f"{claim['metric']} {interval(claim['mean'], claim['low'], claim['high'])}",
            f"{RELATIONS[claim['relation']]} {claim['threshold']:g}",
            null(claim),
            str(seeds(result)),
            config_cell(result, system),
        )
        for result in measured
        for claim in result["claims"]
    ]
    if not rows:
        return "Not measured.\n"
    rows += [
        (
            claim["statement"], "not measured", claim["metric"],
            f"{RELATIONS[claim['relation']]} {claim['threshold']:g}", "", "",
            config_cell(result, system),
        )
        for result in measured
        for claim in not_measured(result)
    ]  # fmt: skip
    # A narrow screen shows two columns before it scrolls.
    head = ("claim", "verdict", "mean (95% interval)", "needed", "null", "seeds", "config")
    return table(head, rows)


BLOCKS: dict[str, Callable[..., str]] = {
    "systems": systems_table,
    "pillars": pillars_table,
    "claims": claims_table,
}


def paper(system: System) -> str:
    """The title, linked to the paper where arXiv has it."""
    title = cell(system.title)
    return f"[{title}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else title


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def documents() -> list[Path]:
    """The files that hold generated blocks."""
    return [ROOT / "README.md", ROOT / "WORKSPACE.md", *sorted((ROOT / "docs").rglob("*.md"))]


def result_lines() -> dict[str, str]:
    """By measured config, where its result stands and how long a run took on what."""
    lines = {}
    for key, found in read_results().items():
        for result in found.values():
            seconds = duration(fmean(result["seconds"])).replace("\u00a0", " ")
            # Of runs on several devices the result names all, for which a line has no room.
            device = "several devices" if "), " in result["device"] else result["device"]
            line = f"Result: results/{key}, {seconds} a run on {device}."
            if len(line) > LONGEST:
                line = line.replace(device, device.partition(" (")[0])
            lines[result["config"]] = line
    return lines


def with_result(config: str, line: str) -> tuple[str, list[str]]:
    """A config's text with the line of its result made anew, and its name if that was stale."""
    before = (ROOT / config).read_text()
    after = RESULT_LINE.sub(lambda _: line, before, count=1)
    return after, [f"{config}: result"] * (after != before)


def rewritten(file: Path) -> tuple[str, list[str]]:
    """A file's text with its blocks made anew, and the names of those that were stale.

    Raises:
      UserError: A block is not closed, or has a name that nothing makes.
    """
    stale_blocks = []
    before = file.read_text()

    def make(block: re.Match[str]) -> str:
        name, *arguments = block["name"].split()
        if name not in BLOCKS:
            raise unknown(f"generated block in {file}", name, BLOCKS)
        expected = len(inspect.signature(BLOCKS[name]).parameters)
        if len(arguments) != expected:
            raise UserError(
                f"generated block in {file}: {block['name']!r} names {len(arguments)}, expected "
                f"{expected} system{'s' * (expected != 1)}"
            )
        text = "\n" + BLOCKS[name](*arguments) + "\n"
        if text != block["text"]:
            stale_blocks.append(f"{file.relative_to(ROOT)}: {block['name']}")
        return block["open"] + text + block["close"]

    after = BLOCK.sub(make, before)
    opened, closed = before.count("<!-- generated: "), len(BLOCK.findall(before))
    if opened != closed:
        raise UserError(f"{file} opens {opened} generated blocks, of which {closed} are whole")
    return after, stale_blocks


def everything() -> list[tuple[Path, str, list[str]]]:
    """All files with something generated: their text made anew, and the names of what was stale."""
    configs = {name: line for name, line in result_lines().items() if (ROOT / name).is_file()}
    return [
        *((file, *rewritten(file)) for file in documents()),
        *((ROOT / name, *with_result(name, line)) for name, line in configs.items()),
    ]


def stale() -> list[str]:
    """Names what differs from what would be generated now, each after its file."""
    return [name for _, _, names in everything() for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites what is generated, or checks it; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.tables", description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="change nothing, name what is stale")
    try:
        options = parser.parse_args(argv)
        changed = everything()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = [name for _, _, stale_blocks in changed for name in stale_blocks]
    for file, text, stale_blocks in changed:
        if stale_blocks and not options.check:
            file.write_text(text)
    for name in names:
        print(f"{name}: {'stale' if options.check else 'rewritten'}")
    if names and options.check:
        print("make it current with: python -m experiments.tables", file=sys.stderr)
    return int(bool(names) and options.check)


if __name__ == "__main__":
    sys.exit(main())
