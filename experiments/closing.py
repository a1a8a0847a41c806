"""What a launch prints when its run is complete: metrics, claims, where to look."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.results import number, sentence

SAYS = {">=": "at least", "<=": "at most"}


def show(summary: Mapping[str, Any], directory: Path) -> None:
    """Prints the headline, the closing table of metrics, the claims, where to look."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if said := headline(summary):
        console.print(said, markup=False)
    table = Table(title=f"{summary['config_name']}, seed {summary['seed']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in summary["metrics"].items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    for line in tell_claims(summary["claims"]):
        console.print(line, markup=False)
    console.print(f"{summary['seconds']:.0f} s; figures in {directory / 'figures'}", markup=False)


def headline(summary: Mapping[str, Any]) -> str:
    """What one run says of its config's headline, in words; empty where it has no such claim."""
    claim = next(iter(summary["claims"]), None)
    if claim is None or claim["value"] is None or not claim.get("says"):
        return ""
    metrics = summary["metrics"]
    ends = {end: metrics.get(f"{claim['metric']}_{end}") for end in ("low", "high")}
    own = {name: [value] for name, value in metrics.items()}
    try:
        words = sentence({**claim, "mean": claim["value"], **ends}, {"metrics": own})
    except KeyError:  # the words have an interval, which one run may not have
        return ""
    return f"by this run alone: {words}"


def tell_claims(claims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What one run says of the claims, in lines; a verdict takes several seeds."""
    judged = [claim for claim in claims if claim["holds"] is not None and is_known(claim)]
    if claims and not any(map(is_known, claims)):
        yield f"claims: none of {len(claims)} was asked, as a condition of the trial does not hold"
        return
    if claims and not judged:
        note = claims[0]["note"]
        yield f"{len(claims)} claims of this config are about its own data: {note}"
        return
    if judged:
        met = sum(claim["holds"] for claim in judged)
        yield f"claims, by this run alone: {met} of {len(judged)} met"
    for claim in claims:
        value = "not measured" if claim["value"] is None else f"is {number(claim['value'])}"
        needed = f"{SAYS[claim['relation']]} {claim['threshold']:g} is claimed"
        verdict = claim.get("note") or ("met" if claim["holds"] else "missed")
        null = told_null(claim)
        yield f"  {verdict}: {claim['statement']} ({claim['metric']} {value}, {needed}{null})"
    if not all(claim["holds"] for claim in judged):
        yield "  One run decides nothing: `python -m experiments.claims` judges over several seeds."


def is_known(claim: Mapping[str, Any]) -> bool:
    """Whether a claim's metric is a number; that of a trial that ended before its seeds is not."""
    return claim["value"] is None or math.isfinite(claim["value"])


def told_null(claim: Mapping[str, Any]) -> str:
    """What a run says of a claim's null, after what is claimed; nothing where it measured none."""
    if claim.get("null_value") is None:
        return ""
    return f"; its null {claim['null']} is {number(claim['null_value'])}"
