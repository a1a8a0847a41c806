"""The page's tables of runs: means by config, every run, and the configs' differences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.groups import ABSENT, Group, differing_keys, final, mean_interval
from experiments.report.markup import Markup, breakable, duration, number, tag, with_spread
from experiments.report.runs import Run
from experiments.report.sections import (  # fmt: skip
    by_experiment,
    heading,
    link,
    notes_mark,
    plain,
    scroll,
    status,
    steps,
)

SHOWN_METRICS = 6
BESIDE_CONFIG = 2  # metrics that stand beside what differs
MEANS = (
    "Mean over seeds and half its 95% interval, over complete runs. Bold: better than every other "
    "config of the same data, by intervals that do not meet."
)


def runs_section(runs: Sequence[Run], groups: Sequence[Group], metrics: Sequence[str]) -> Markup:
    """Means by config where runs share one, then every run, with a choice of metrics."""
    picks = [
        tag(
            "label",
            tag("input", type="checkbox", value=f"m{place}", checked=place < SHOWN_METRICS),
            " ", name,
        )
        for place, name in enumerate(metrics)
    ]  # fmt: skip
    chooser = tag(
        "details",
        tag("summary", f"Metric columns ({len(metrics)})"),
        tag("div", picks, class_="picks"),
        class_="columns scripted",
    )
    parts = [chooser] if metrics else []
    if len(groups) < len(runs):
        means = scroll("Means by config", _groups_table(runs, groups, metrics))
        parts += [
            tag("h3", "By config"),
            tag("p", MEANS, class_="note"),
            means,
            tag("h3", "Each run"),
        ]
    return Markup("".join([*parts, scroll("Runs", _runs_table(runs, metrics))]))


def _metric_heads(metrics: Sequence[str]) -> list[Markup]:
    return [
        heading(name, numeric=True, column=f"m{place}", hidden=place >= SHOWN_METRICS)
        for place, name in enumerate(metrics)
    ]


def _groups_table(runs: Sequence[Run], groups: Sequence[Group], metrics: Sequence[str]) -> Markup:
    """Configs down, metrics across; the page's script keeps the means to the runs in view."""
    head = [heading("Config", sticky=True), heading("Complete", numeric=True)]
    rows = []
    for place, group in enumerate(groups):
        members = [runs[i] for i in group.members]
        complete = sum(run.status == "complete" for run in members)
        cells = [
            tag("th", breakable(group.name), scope="row", class_="sticky", data_v=group.name),
            tag("td", f"{complete} of {len(members)}", class_="number complete", data_v=complete),
        ]
        for column, name in enumerate(metrics):
            values = [value for run in members if (value := final(run, name)) is not None]
            mean, half = mean_interval(values) if values else (None, None)
            cells.append(
                tag(
                    "td",
                    with_spread(mean, half) if mean is not None and half is not None
                    else None if mean is None else number(mean),
                    class_="number mean", data_column=f"m{column}", data_metric=column,
                    data_v=plain(mean), hidden=column >= SHOWN_METRICS,
                )
            )  # fmt: skip
        runs_of = " ".join(map(str, group.members))
        rows.append(tag("tr", cells, data_runs=runs_of, data_group=place))
    head += _metric_heads(metrics)
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="means sortable")


def _runs_table(runs: Sequence[Run], metrics: Sequence[str]) -> Markup:
    fixed = ("Run", "Experiment", "Status", "Steps", "Time")
    head = [heading(t, sticky=t == "Run", numeric=t in ("Steps", "Time")) for t in fixed]
    head += [*_metric_heads(metrics), heading("Seed", numeric=True), heading("Device")]
    rows = []
    for index, run in enumerate(runs):
        cells = [
            tag("th", link(index, run), scope="row", class_="sticky", data_v=run.name),
            tag("td", breakable(run.experiment), data_v=run.experiment),
            tag("td", status(run), notes_mark(run), data_v=run.status),
            tag("td", steps(run), class_="number", data_v=plain(run.last_step)),
            tag("td", duration(run.seconds), class_="number", data_v=plain(run.seconds)),
        ]
        for place, name in enumerate(metrics):
            hidden = place >= SHOWN_METRICS
            cells.append(_metric_cell(run, name, data_column=f"m{place}", hidden=hidden))
        cells.append(tag("td", run.seed, class_="number", data_v=run.seed))
        cells.append(tag("td", run.devices, data_v=run.devices))
        rows.append(tag("tr", cells, data_run=index))
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="sortable")


def _metric_cell(run: Run, name: str, **attributes: Any) -> Markup:
    """A metric's value, with the step where it was measured if the run is unfinished."""
    value, at = run.metrics.get(name, (None, None))
    return tag(
        "td",
        None if value is None else number(value),
        None if at is None else tag("small", f" @{number(at)}"),
        class_="number",
        data_v=plain(value),
        title=None if at is None else f"unfinished: measured at step {number(at)}",
        **attributes,
    )


def metric_order(runs: Sequence[Run]) -> list[str]:
    """Metrics that most runs share first, among them those that claims read, then short names."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.metrics:
            counts[name] = counts.get(name, 0) + 1
    claimed = {str(claim.get("metric")) for run in runs for claim in run.claims}
    return sorted(counts, key=lambda n: (-counts[n], n not in claimed, len(n), n))


def config_differences(runs: Sequence[Run]) -> list[Markup]:
    """For each experiment with several runs, the keys of the config in which they differ."""
    parts = []
    for experiment, members in by_experiment(runs).items():
        if len(members) < 2:
            continue
        known = [i for i in members if runs[i].config]
        differing, same = differing_keys([runs[i] for i in known])
        differing = {key: differing[key] for key in sorted(differing)}
        if differing:
            body = scroll(f"Config of {experiment}", _difference_table(runs, known, differing))
        else:
            body = tag("p", f"All {len(known)} configs are equal.", class_="empty")
        shared = tag(
            "details",
            tag("summary", f"{len(same)} keys that all {len(known)} runs share"),
            tag(
                "pre", "\n".join(f"{key} = {_value(value)}" for key, value in sorted(same.items()))
            ),
        )
        parts.append(
            tag(
                "div",
                tag("h3", experiment, " ", tag("small", f"{len(members)} runs")),
                body,
                shared if same else None,
                data_runs=" ".join(map(str, members)),
            )
        )
    return parts


def _difference_table(
    runs: Sequence[Run], members: Sequence[int], differing: Mapping[str, Sequence[Any]]
) -> Markup:
    """Runs down and keys across, or the other way round where the keys outnumber the runs."""

    def cell(place: int, key: str, **attributes: Any) -> Markup:
        text = _value(differing[key][place])
        return tag("td", text, class_="value", data_v=text, **attributes)

    if len(differing) > len(members):
        head = [heading("Key", sticky=True), *(heading(runs[i].name, data_run=i) for i in members)]
        rows = [
            tag(
                "tr",
                tag("th", key, scope="row", class_="sticky", data_v=key),
                [cell(place, key, data_run=i) for place, i in enumerate(members)],
            )
            for key in differing
        ]
    else:
        measured = metric_order([runs[i] for i in members])[:BESIDE_CONFIG]
        head = [heading("Run", sticky=True), *map(heading, differing)]
        head += [heading(name, numeric=True) for name in measured]
        rows = [
            tag(
                "tr",
                tag("th", link(i, runs[i]), scope="row", class_="sticky", data_v=runs[i].name),
                [cell(place, key) for key in differing],
                [_metric_cell(runs[i], name) for name in measured],
                data_run=i,
            )
            for place, i in enumerate(members)
        ]
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="sortable")


def _value(value: Any) -> str:
    return "(absent)" if value is ABSENT else json.dumps(value, ensure_ascii=False, default=str)
