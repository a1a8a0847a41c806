"""Pages of the site that are made from the tree: systems, areas, gallery, data, benchmarks, API.

A page whose file exists under docs/ keeps its text, and what is generated follows it.
"""

import ast
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import griffe
import numpy as np

from docs.benchmark_page import benchmarks_page
from docs.comparison import comparison
from docs.data_cards import data_page, data_set_page
from experiments.data_sets import data_sets, read_cards, users
from experiments.report.markup import duration
from experiments.results import (  # fmt: skip
    count_seeds,
    interval,
    null,
    number,
    read_benchmarks,
    read_results,
    seeds_a_run,
)
from experiments.systems import System, read_systems
from experiments.tables import (  # fmt: skip
    RELATIONS,
    Headline,
    claims_table,
    found,
    headline,
    in_order,
    table,
    told,
)
from rml.training.claims import over_runs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
AREA_TITLES = {
    "fewshot": "Few-shot learning",
    "kernels": "Deep kernel machines",
    "metric": "Metric learning",
    "moe": "Mixture of experts",
    "visionlanguage": "Vision and language",
}
COLUMNS = ("system", "paper", "area", "headline", "verdict")
"""Heads of a table of systems, by which the site's style and script know it."""
FAILED = ("not reproduced", "one run: missed", "vacuous")
"""Verdicts of claims that are listed as not reproduced."""
COSTS = ("steps", "seconds", "flops", "bytes", "parameters")
"""What a row of arms may say of its costs."""
Results = Mapping[str, Mapping[str, Any]]
"""Committed measurements of one system by config, see `experiments.results`."""


def pages() -> dict[str, str]:
    """Makes the Markdown of every generated page, by its address in the site."""
    systems, results, library = list(read_systems().values()), read_results(), load_library()
    cards, used = read_cards(), users(systems)
    made = {
        "index.md": front_page(systems, results),
        "gallery.md": gallery_page(systems, pictures()),
        "systems/index.md": systems_page(systems, results),
        "areas/index.md": areas_page(systems),
        "api/index.md": api_page(library),
        "data/index.md": data_page(data_sets(), cards),
        "benchmarks.md": benchmarks_page(read_benchmarks()),
    }
    for area in areas(systems):
        written = DOCS / "areas" / f"{area}.md"
        head = "" if written.exists() else f"# {area_title(area)}\n\n"
        members = [system for system in systems if system.area == area]
        side_by_side = comparison(area, members, results)
        made[f"areas/{area}.md"] = f"{head}{side_by_side}\n" + area_section(members, results)
    for system in systems:
        made[f"systems/{system.key}.md"] = system_page(system, results, library, pictures())
    for one in data_sets():
        made[f"data/{one.name}.md"] = data_set_page(
            one, cards.get(one.name), used.get(one.name, ())
        )
    for room in rooms(library):
        made[room_address(room)] = room_page(room, library)
    return {
        address: f"{(DOCS / address).read_text()}\n{text}" if (DOCS / address).exists() else text
        for address, text in made.items()
    }


def navigation() -> list[dict[str, Any]]:
    """Lists the generated pages for the site's navigation."""
    systems = list(read_systems().values())
    found = areas(systems)
    members = [
        {area_title(a): [{s.key: f"systems/{s.key}.md"} for s in systems if s.area == a]}
        for a in found
    ]
    library = rooms(load_library())
    return [
        {"Areas": ["areas/index.md", *({area_title(a): f"areas/{a}.md"} for a in found)]},
        {"Systems": ["systems/index.md", *members]},
        {"Data": ["data/index.md", *({one.name: f"data/{one.name}.md"} for one in data_sets())]},
        {"Benchmarks": "benchmarks.md"},
        {"API": ["api/index.md", *({room.path: room_address(room)} for room in library)]},
    ]


def pictures(root: Path = ROOT / "results") -> dict[str, Path]:
    """Lists the committed pictures by their address in the site."""
    return {f"results/{f.parent.name}/{f.name}": f for f in sorted(root.glob("*/*.png"))}


def pictures_of(system: System, shown: Iterable[str]) -> list[str]:
    """Lists those addresses of pictures that are of a system, that of the claim's config first."""
    own = [f"results/{system.key}/{Path(config).stem}.png" for config in system.configs]
    return [address for address in own if address in shown]


def areas(systems: Iterable[System]) -> list[str]:
    """Lists the areas of systems, those first that have a system that is built."""
    built = dict.fromkeys(system.area for system in systems if system.built)
    return list(dict.fromkeys([*built, *sorted(system.area for system in systems)]))


def area_title(area: str) -> str:
    """Names an area as its page does."""
    return AREA_TITLES.get(area, area.capitalize())


def sentence(text: str) -> str:
    """Writes a phrase as a sentence; a name such as kNN keeps its first letter."""
    first = text.partition(" ")[0]
    return f"{first.capitalize() if first.islower() else first}{text[len(first) :].rstrip('.')}."


def systems_table(
    systems: Iterable[System], results: Mapping[str, Results], prefix: str = ""
) -> str:
    """Writes a table of systems that links to their pages, which are at `prefix`."""
    rows = []
    for system in systems:
        words, verdict = found(system, results)
        link = f"[{system.key}]({prefix}{system.key}.md)"
        rows.append((link, system.title, system.area, words, verdict))
    return table(COLUMNS, rows)


def front_page(systems: Sequence[System], results: Mapping[str, Results]) -> str:
    """Writes the end of the front page: all systems, those first that are built."""
    ordered = sorted(systems, key=lambda system: not system.built)
    return (
        "## What was found\n\nOne headline a system, over seeds, with its 95% interval; "
        "[Results and claims](guides/results.md) says how the verdicts arise.\n\n"
        f"{systems_table(ordered, results, 'systems/')}"
    )


def systems_page(systems: Sequence[System], results: Mapping[str, Results]) -> str:
    """Writes the page of all systems, by section."""
    parts = ["# Systems\n"]
    for section in dict.fromkeys(system.section for system in systems):
        members = [system for system in systems if system.section == section]
        parts.append(f"## {section}\n\n{systems_table(members, results)}")
    return "\n".join(parts)


def areas_page(systems: Sequence[System]) -> str:
    """Writes the page of all areas."""
    rows = []
    for area in areas(systems):
        built = [system.built for system in systems if system.area == area]
        rows.append((f"[{area_title(area)}]({area}.md)", str(len(built)), str(sum(built))))
    return "# Areas\n\n" + table(("area", "systems", "built"), rows)


def area_section(systems: Sequence[System], results: Mapping[str, Results]) -> str:
    """Writes the end of an area's page: its systems."""
    return "## Systems\n\n" + systems_table(systems, results, "../systems/")


def gallery_page(systems: Iterable[System], shown: Mapping[str, Path]) -> str:
    """Writes the page of all pictures, each with the system and config that it is of."""
    parts = ["# Gallery\n"]
    for system in systems:
        for address in pictures_of(system, shown):
            caption = f"[{system.title}](systems/{system.key}.md), `{Path(address).stem}`"
            parts.append(f"![{system.key}, {Path(address).stem}]({address})\n\n*{caption}*\n")
    if not shown:
        parts.append("No results are committed; `make claims` writes them.\n")
    return "\n".join(parts)


def system_page(
    system: System,
    results: Mapping[str, Results],
    library: griffe.Module,
    shown: Mapping[str, Path],
) -> str:
    """Writes the page of a system: what was found, what it is, what was measured, how to run it.

    Args:
      system: The system.
      results: Committed measurements of all systems.
      library: The parsed package `rml`.
      shown: Pictures of all systems by address.

    Returns:
      Markdown.
    """
    parts = [f"# {system.title}\n", reference(system)]
    claim = f"## What must hold\n\n{sentence(system.claim)}\n"
    if not system.built:
        note = '!!! note "Not built"\n\n    This repository does not implement this system.\n'
        return "\n".join([*parts, note, claim])
    functions = ", ".join(f"`{name}`" for name in system.functions)
    measured = in_order(results.get(system.key, {}), system)
    parts += [headline_section(headline(system, results))]
    parts += ["## What it is\n", description(system, library), f"In the library: {functions}.\n"]
    parts += [claim, "## What was measured\n", measured_table(system.key)]
    parts += [failed_section(measured), *map(arms_section, measured.values())]
    parts += [rows_section(measured)]
    parts += [
        f"![{system.key}, {Path(address).stem}](../{address})\n\n*`{Path(address).stem}`*\n"
        for address in pictures_of(system, shown)
    ]
    parts += ["## Run\n", *(run_section(config) for config in system.configs)]
    if measured:
        parts += ["## How it was measured\n", *map(conditions, measured.values())]
    return "\n".join(part for part in parts if part)


def headline_section(first: Headline | None) -> str:
    """Says what came of a system, with its verdict; nothing where it is not measured."""
    if first is None:
        return ""
    claim, result = first
    return (
        f"## What was found\n\n{told(claim, result)}. Verdict: **{claim['verdict']}**, by "
        f"{count_seeds(result)} of `{Path(result['config']).stem}`; without the idea: "
        f"{null(claim)}.\n"
    )


def arms_section(result: Mapping[str, Any]) -> str:
    """Writes the table of a trial's arms; nothing where a result has none."""
    arms = result.get("arms", ())
    if not arms:
        return ""
    says = {arm["name"]: arm["says"] for arm in arms}
    rows = [
        (
            arm["says"], arm["role"], arm["metric"],
            interval(arm["mean"], arm["low"], arm["high"]),
            "" if arm["over"] == arm["name"] else f"{says[arm['over']]}: " + interval(
                arm["difference"], arm["difference_low"], arm["difference_high"]
            ),
            ", ".join(f"{key} {_value(value)}" for key, value in arm["options"].items()),
            f"{arm['tries']}{', at the edge' * bool(arm['at_edge'])}",
            ", ".join(f"{name} {number(arm[name])}" for name in COSTS if name in arm),
        )
        for arm in arms
    ]  # fmt: skip
    over = "over the strongest baseline"
    head = ("arm", "role", "what", "mean (95% interval)", over, "options", "tries", "cost")
    return f"### Arms of `{Path(result['config']).stem}`\n\n{table(head, rows)}"


def _value(value: Any) -> str:
    """A chosen option as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows_section(results: Results) -> str:
    """Writes what was measured beside the claims: numbers without a verdict."""
    rows = [
        (
            row["statement"], f"`{Path(result['config']).stem}`",
            f"{row['metric']} {interval(row['mean'], row['low'], row['high'])}",
        )
        for result in results.values()
        for row in result.get("rows", ())
    ]  # fmt: skip
    if not rows:
        return ""
    note = "Claims once, numbers without a verdict now: what a statement needs is not judged here."
    head = ("statement", "config", "mean (95% interval)")
    return f"### Also measured\n\n{note}\n\n{table(head, rows)}"


def reference(system: System) -> str:
    """Writes authors, year, venue and the link to a paper, and the system's area."""
    names = system.authors if len(system.authors) <= 5 else (*system.authors[:3], "and others")
    source = [", ".join(names), str(system.year), system.venue]
    if system.arxiv:
        source.append(f"[arXiv:{system.arxiv}](https://arxiv.org/abs/{system.arxiv})")
    area = f"[{area_title(system.area)}](../areas/{system.area}.md)"
    return f"{', '.join(filter(None, source))}. Area: {area}.\n"


def description(system: System, library: griffe.Module) -> str:
    """Says what a system is: its text under docs/about, or its first function's docstring."""
    written = DOCS / "about" / f"{system.key}.md"
    if written.exists():
        return written.read_text()
    docstring = find(system.functions[0], library).docstring
    parsed = docstring.parsed if docstring else []
    texts = [part.value for part in parsed if part.kind.value == "text"]
    return "\n\n".join(texts) + "\n"


def run_section(config: str) -> str:
    """Writes the docstring of a config, which is read and not run, with its commands as code."""
    docstring = ast.get_docstring(ast.parse((ROOT / config).read_text())) or ""
    parts = [f"### {Path(config).stem}"]
    for part in docstring.split("\n\n"):
        if part.startswith("python -m"):
            part = "\n".join(["```", *map(broken, part.splitlines()), "```"])
        parts.append(part)
    return "\n\n".join(parts) + "\n"


def broken(command: str) -> str:
    """Breaks a long command at its flags; reading a docstring joins what its source broke."""
    start, *flags = re.split(" +(?=--)", command)
    separator = " \\\n    " if len(command) > 76 else " "
    return separator.join([" ".join([start, *flags[:1]]), *flags[1:]])


def measured_table(key: str) -> str:
    """Writes the table of a system's claims, its configs without folder and suffix."""
    return re.sub(r"`configs/\w+/(\w+)\.py`", r"`\1`", claims_table(key))


def failed_section(results: Results) -> str:
    """Lists the claims that were not reproduced."""
    lines = [
        f"- {claim['statement']}: {interval(claim['mean'], claim['low'], claim['high'])} in "
        f"`{Path(result['config']).stem}`, needed "
        f"{RELATIONS[claim['relation']]} {claim['threshold']:g} ({claim['verdict']})."
        for result in results.values()
        for claim in result["claims"]
        if claim["verdict"] in FAILED
    ]
    return "\n".join(["### Not reproduced\n", *lines, ""]) if lines else ""


def conditions(result: Mapping[str, Any]) -> str:
    """Writes under what conditions a config was measured, and all of its metrics."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = [
        (
            f"`{name}`", mean_over_runs(name, result["metrics"]),
            *("not finite" if value is None else number(value) for value in values),
        )
        for name, values in result["metrics"].items()
    ]  # fmt: skip
    one = "seed" if seeds_a_run(result) == 1 else "run"
    runs = (f"{one} {seed}" for seed in result["seeds"])
    metrics = table(("metric", "mean (95% interval)", *runs), rows)
    made_by = [commit[:12] for commit in result["commit"].split(", ")]
    return (
        f"`{result['config']}`: {count_seeds(result)}, {duration(fmean(result['seconds']))} a run "
        f"on {result['device']}; commit{'s' * (len(made_by) != 1)} {', '.join(made_by)}, "
        f"{result['finished'][:10]}; {versions}. {options(result)}\n\n"
        f'??? note "All metrics of {Path(result["config"]).stem}"\n\n'
        + "".join(f"    {line}\n" for line in metrics.splitlines())
    )


def mean_over_runs(name: str, metrics: Mapping[str, Sequence[float | None]]) -> str:
    """Writes a metric's mean with the interval by which claims go; empty where it has no width."""
    names = [name, f"{name}_low", f"{name}_high"]
    found = np.array([metrics[one] for one in names if one in metrics], np.float64)
    if not np.isfinite(found).all():
        return ""
    mean, low, high = over_runs(found[0], found[1:].T.tolist() if len(found) == len(names) else ())
    return interval(mean, low, high) if low < high else ""


def options(result: Mapping[str, Any]) -> str:
    """Says where the options of a measurement come from, and how many were tried on each side."""
    tried = result.get("options", "fixed")
    if tried == "fixed":
        return "All options are fixed in the config."
    counts = ", ".join(f"{side} {count}" for side, count in tried.items())
    return f"Options were chosen without test data, of so many combinations: {counts}."


@functools.cache
def load_library() -> griffe.Module:
    """Parses the package `rml` without importing it."""
    library = griffe.load("rml", search_paths=[ROOT], docstring_parser="google")
    assert isinstance(library, griffe.Module)
    return library


def rooms(library: griffe.Module) -> list[griffe.Module]:
    """Lists what a user imports from: the library itself, then the packages below it, by name."""
    modules = sorted(library.modules.values(), key=lambda module: module.name)
    packages = (module for module in modules if module.is_subpackage)
    return [library, *(room for package in packages for room in rooms(package))]


def room_address(room: griffe.Module) -> str:
    """Says where the page of a room is in the site: a package lies in the folder of its parent."""
    return f"api/{room.path.removeprefix('rml.').replace('.', '/')}.md"


def path(name: str, library: griffe.Module) -> str:
    """Finds where what a room exports is defined; a module may have the name of its function.

    Args:
      name: Dotted name as it is written in Python, from `rml` on.
      library: The parsed package `rml`.

    Returns:
      The name under which mkdocstrings knows it; `name` itself where no room imports it.
    """
    room, _, last = name.rpartition(".")
    try:
        source = library.modules_collection[room].imports.get(last, name)
    except KeyError:  # no room, such as a class
        return name
    return name if source == name else path(source, library)


def find(name: str, library: griffe.Module) -> griffe.Object | griffe.Alias:
    """Finds a function by a name under which a room exports it, or by its own."""
    return library[path(name, library).removeprefix("rml.")]


def api_page(library: griffe.Module) -> str:
    """Writes the page of all rooms."""
    rows = []
    for room in rooms(library):
        summary = room.docstring.value.partition("\n")[0] if room.docstring else ""
        rows.append((f"[{room.path}]({room_address(room).removeprefix('api/')})", summary))
    head = (
        "# API\n\nEvery name is imported from its room: `from rml.losses import nt_xent`. What "
        "`rml` itself has is used as `rml.load`.\n\n"
    )
    return head + table(("room", "content"), rows)


def room_page(room: griffe.Module, library: griffe.Module) -> str:
    """Writes the page of a room for mkdocstrings: its docstring, then every name it exports."""
    head = "    options: {heading_level: 1, members: false, show_root_full_path: true}\n"
    names = [str(name) for name in room.exports or ()]
    exported = [f"::: {path(f'{room.path}.{name}', library)}\n" for name in names]
    return "\n".join([f"::: {room.path}\n{head}", *exported])
