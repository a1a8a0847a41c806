"""The section of claims: what papers say, what was measured, whether it holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.groups import Group, mean_interval
from experiments.report.markup import Markup, number, tag, with_spread
from experiments.report.runs import Run, number_of
from experiments.report.sections import heading, link, scroll
from experiments.results import RELATIONS

COLUMNS = ("Verdict", "Claim", "Measured", "Needed", "Null", "Runs")
NOTE = (
    "Runs are joined only where their configs differ in the seed alone, each seed once, and "
    "extended runs apart. Of several runs the mean "
    "and half its 95% interval are shown: a claim holds if the whole interval meets what is "
    "needed, is not reproduced if the whole interval misses it, and is undecided otherwise. The "
    "null is what is measured where the idea is absent: a claim that holds and whose null does too "
    "is vacuous. Nulls that are runs of their own, and intervals over test examples, are judged by "
    "`python -m experiments.claims`. The drawing places every run's value (dots) beside the needed "
    "one (bar)."
)
FIELDS = ("statement", "metric", "relation", "threshold", "source", "note")
KINDS = {  # class of the page's style, symbol
    "holds": ("holds", "✓"), "one run: met": ("holds", "✓"),
    "not reproduced": ("fails", "✗"), "one run: missed": ("fails", "✗"),
    "undecided": ("mixed", "◐"), "vacuous": ("fails", "○"),
}  # fmt: skip
NOT_JUDGED = ("unjudged", "–")


@dataclass(frozen=True)
class Measured:
    """A claim over the runs of one config.

    Attributes:
      group: Group of the runs.
      claim: Claim as the first of the runs gives it.
      runs: Indices of the runs.
      values: Value in each run, None where there is none.
      nulls: Value of the null in each run; none where the null is another run.
      verdict: One of `KINDS`, or why the claim is not judged.
    """

    group: Group
    claim: dict[str, Any]
    runs: tuple[int, ...]
    values: tuple[float | None, ...]
    nulls: tuple[float | None, ...]
    verdict: str


def measured_claims(runs: Sequence[Run], groups: Sequence[Group]) -> list[Measured]:
    """The claims of every config, its headline first, those last that are not judged.

    Runs of other data or other margins never share a claim: their configs or claims differ. Those
    of a null, and of a seed that counts in another run, are not judged.
    """
    found = []
    for group in groups:
        same: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
        counted = "" if group.counted is None else f"its seed counts in {runs[group.counted].name}"
        for index in group.members:
            note = counted or _null_of(runs[index])
            for claim in runs[index].claims:
                claim = claim | {"note": claim.get("note") or note}
                key = tuple(str(claim.get(name)) for name in FIELDS)
                same.setdefault(key, []).append((index, claim))
        for of_runs in same.values():
            claim = of_runs[0][1]
            values = tuple(number_of(claim.get("value")) for _, claim in of_runs)
            nulls = tuple(number_of(claim.get("null_value")) for _, claim in of_runs)
            nulls = nulls if claim.get("null") else ()
            words = str(claim.get("note") or "") or verdict(claim, values, nulls)
            members = tuple(index for index, _ in of_runs)
            found.append(Measured(group, claim, members, values, nulls, words))
    return sorted(found, key=lambda each: each.verdict not in KINDS)


def _null_of(run: Run) -> str:
    """Which null of its claims a run is, by the folder of its seeds; empty where it is none."""
    name = run.path.resolve().parent.name
    nulls = [claim.get("null_run") for claim in run.claims]
    return f"run of the null {name}" if name and name in nulls else ""


def verdict(
    claim: dict[str, Any], values: Sequence[float | None], nulls: Sequence[float | None] = ()
) -> str:
    """What `rml.training.judge` says, without what it takes to import it."""
    own = _verdict(claim, values)
    passes = ("holds", "one run: met")
    vacuous = own in passes and len(nulls) > 0 and _verdict(claim, nulls) in passes
    return "vacuous" if vacuous else own


def _verdict(claim: dict[str, Any], values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    threshold = number_of(claim.get("threshold"))
    if len(known) < len(values) or threshold is None or claim.get("relation") not in RELATIONS:
        return "undecided"
    mean, half = mean_interval(known)
    sign = 1 if claim["relation"] == ">=" else -1
    met = {sign * (end - threshold) >= 0 for end in (mean - (half or 0), mean + (half or 0))}
    if half is None:
        return "one run: met" if True in met else "one run: missed"
    return "undecided" if len(met) > 1 else "holds" if True in met else "not reproduced"


def claims_table(runs: Sequence[Run], measured: Sequence[Measured]) -> Markup:
    """One row a claim and config, over all runs that measured it."""
    if not measured:
        return tag("p", "No finished run has measured a claim yet.", class_="empty")
    rows = [_claim_row(runs, place, each) for place, each in enumerate(measured)]
    head = tag("tr", [heading(t, numeric=t in ("Measured", "Needed")) for t in COLUMNS])
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="claims sortable")
    return scroll("Claims", table)


def claims_data(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """What the page's script needs to judge the claims over the runs that a filter leaves."""
    return [
        {
            "relation": str(each.claim.get("relation")),
            "threshold": _finite(number_of(each.claim.get("threshold"))),
            "judged": not each.claim.get("note"),
            "runs": each.runs,
            "values": [_finite(value) for value in each.values],
            "nulls": [_finite(value) for value in each.nulls],
        }
        for each in measured
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _claim_row(runs: Sequence[Run], place: int, measured: Measured) -> Markup:
    claim, values = measured.claim, measured.values
    finite = [value for value in values if value is not None and math.isfinite(value)]
    kind, symbol = KINDS.get(measured.verdict, NOT_JUDGED)
    shown, mean = number(values[0]), finite[0] if finite else None
    if len(finite) > 1:
        mean, half = mean_interval(finite)
        shown = with_spread(mean, half or 0.0)
    marks = {True: " ✓", False: " ✗", None: None}
    each = [
        tag("li", link(i, runs[i]), ": ", number(v), marks[_holds(runs[i], claim)], data_run=i)
        for i, v in zip(measured.runs, values, strict=True)
    ]
    count = f"{len(each)} run{'s' * (len(each) != 1)}"
    null = [value for value in measured.nulls if value is not None and math.isfinite(value)]
    absent = sum(null) / len(null) if null else None
    name = claim.get("null") or claim.get("null_run")
    relation = RELATIONS.get(str(claim.get("relation")), str(claim.get("relation")))
    threshold = number_of(claim.get("threshold"))
    source = tag("span", claim.get("source"), class_="source") if claim.get("source") else None
    first = runs[measured.runs[0]]
    where = [first.experiment, " · ", measured.group.name]
    if first.claims[0].get("statement") == claim.get("statement"):
        where = ["headline of ", *where]
    return tag(
        "tr",
        tag(
            "td",
            tag("span", symbol, aria_hidden="true", class_="symbol"), " ",
            tag("span", measured.verdict, class_="words"),
            class_=f"verdict {kind}", data_v=measured.verdict, data_text=measured.verdict,
        ),
        tag(
            "td",
            tag("span", claim.get("statement"), class_="statement"), source,
            tag("span", where, class_="source"),
            class_="wide", data_v=claim.get("statement"),
            data_text=f"{claim.get('statement')} ({claim.get('metric')}, {measured.group.name})",
        ),
        tag(
            "td",
            tag("span", shown, class_="mean"), tag("span", claim.get("metric"), class_="source"),
            _strip(measured, threshold) if finite and threshold is not None else None,
            class_="measured", data_v=mean, data_text=shown,
        ),
        tag("td", f"{relation} {number(threshold)}", class_="number", data_v=threshold,
            data_text=f"{relation} {number(threshold)}"),
        tag(
            "td",
            tag("span", number(absent) if null else "–", class_="mean"),
            tag("span", name, class_="source") if name else None,
            class_="null", data_v=absent, data_text=number(absent) if null else "–",
        ),
        tag(
            "td",
            tag("details", tag("summary", count, class_="count"), tag("ul", each)),
            data_v=len(each), data_text=len(each), class_="members",
        ),
        data_runs=" ".join(map(str, measured.runs)), data_claim=place,
    )  # fmt: skip


def _holds(run: Run, claim: dict[str, Any]) -> bool | None:
    """Whether the run met the claim by itself, None where it is not judged."""
    if claim.get("note"):
        return None
    names = [name for name in FIELDS if name != "note"]
    own = [c for c in run.claims if all(c.get(name) == claim.get(name) for name in names)]
    held = own[0].get("holds") if own else None
    return held if isinstance(held, bool) else None


def _strip(measured: Measured, threshold: float) -> Markup | None:
    """Where the measured values lie beside the threshold, as a small drawing."""
    finite = {
        i: value
        for i, value in zip(measured.runs, measured.values, strict=True)
        if value is not None and math.isfinite(value)
    }
    low, high = min([*finite.values(), threshold]), max([*finite.values(), threshold])
    span = (high - low) or abs(high) or 1.0
    if not math.isfinite(span):
        return None

    def position(value: float) -> float:
        return round(8 + 104 * (value - low + 0.1 * span) / (high - low + 0.2 * span), 1)

    at = position(threshold)
    return tag(
        "svg",
        tag("line", x1=2, x2=118, y1=9, y2=9, class_="axis"),
        tag("line", x1=at, x2=at, y1=1, y2=17, class_="threshold"),
        [tag("circle", cx=position(v), cy=9, r=3.5, data_run=i) for i, v in finite.items()],
        viewBox="0 0 120 18", width=120, height=18, class_="strip", aria_hidden="true",
    )  # fmt: skip
