"""The section of claims: what papers say, what was measured, whether it holds."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from experiments.report.markup import Markup, number, tag, with_spread
from experiments.report.runs import Run, number_of
from experiments.report.sections import heading, link, scroll

COLUMNS = ("Verdict", "Claim", "Measured", "Needed", "Runs")
NOTE = (
    "Of several runs the mean and standard deviation are shown; the drawing places every run's "
    "value (dots) beside the needed one (bar)."
)


def claims_table(runs: Sequence[Run]) -> Markup:
    """One row a claim and config, over all runs that measured it."""
    groups: dict[tuple, list[tuple[int, dict[str, Any]]]] = {}
    for index, run in enumerate(runs):
        for claim in run.claims:
            parts = ("statement", "metric", "relation", "threshold", "source")
            config = str(run.summary.get("config_name") or "")
            key = (run.experiment, config, *(str(claim.get(part)) for part in parts))
            groups.setdefault(key, []).append((index, claim))
    if not groups:
        return tag("p", "No finished run has measured a claim yet.", class_="empty")
    rows = [_claim_row(runs, measured) for _, measured in sorted(groups.items())]
    head = tag("tr", [heading(t, numeric=t in ("Measured", "Needed")) for t in COLUMNS])
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="claims sortable")
    return scroll("Claims", table)


def _claim_row(runs: Sequence[Run], measured: list[tuple[int, dict[str, Any]]]) -> Markup:
    first, run = measured[0][1], runs[measured[0][0]]
    held = sum(claim.get("holds") is True for _, claim in measured)
    values = [number_of(claim.get("value")) for _, claim in measured]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if held == len(measured):
        kind, symbol, words = "holds", "✓", "holds"
    elif held:
        kind, symbol, words = "mixed", "◐", f"holds in {held} of {len(measured)} runs"
    else:
        kind, symbol, words = "fails", "✗", "not reproduced"
    if len(finite) > 1:
        shown = tag("b", with_spread(fmean(finite), stdev(finite)))
    else:
        shown = tag("b", number(finite[0] if finite else values[0]))
    each = [
        tag("li", link(i, runs[i]), ": ", number(v), " ", "✓" if c.get("holds") is True else "✗")
        for (i, c), v in zip(measured, values, strict=True)
    ]
    several = tag("details", tag("summary", f"{len(each)} runs"), tag("ul", each))
    relation = {">=": "≥", "<=": "≤"}.get(str(first.get("relation")), str(first.get("relation")))
    threshold = number_of(first.get("threshold"))
    source = tag("span", first.get("source"), class_="source") if first.get("source") else None
    where = [run.experiment, " · ", run.summary.get("config_name") or run.name]
    return tag(
        "tr",
        tag(
            "td",
            tag("span", symbol, aria_hidden="true"), " ", words,
            class_=f"verdict {kind}", data_v=held / len(measured),
        ),
        tag(
            "td",
            tag("span", first.get("statement"), class_="statement"), source,
            tag("span", where, class_="source"),
            class_="wide", data_v=first.get("statement"),
        ),
        tag(
            "td",
            shown, tag("span", first.get("metric"), class_="source"),
            _strip(finite, threshold) if finite and threshold is not None else None,
            class_="measured", data_v=fmean(finite) if finite else "",
        ),
        tag("td", f"{relation} {number(threshold)}", class_="number", data_v=threshold),
        tag(
            "td",
            several if len(each) > 1 else link(measured[0][0], run),
            data_v=len(each),
        ),
        data_runs=" ".join(str(i) for i, _ in measured),
    )  # fmt: skip


def _strip(values: list[float], threshold: float) -> Markup | None:
    """Where the measured values lie beside the threshold, as a small drawing."""
    low, high = min([*values, threshold]), max([*values, threshold])
    span = (high - low) or abs(high) or 1.0
    if not math.isfinite(span):
        return None

    def place(value: float) -> float:
        return round(8 + 104 * (value - low + 0.1 * span) / (high - low + 0.2 * span), 1)

    at = place(threshold)
    return tag(
        "svg",
        tag("line", x1=2, x2=118, y1=9, y2=9, class_="axis"),
        tag("line", x1=at, x2=at, y1=1, y2=17, class_="threshold"),
        [tag("circle", cx=place(v), cy=9, r=3.5) for v in values],
        viewBox="0 0 120 18", width=120, height=18, class_="strip", aria_hidden="true",
    )  # fmt: skip
