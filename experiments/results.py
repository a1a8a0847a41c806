"""Committed measurements: `results/<system>/<config>.json` with a picture of the same name.

Here they are read and put into words; `experiments.record` makes them of run directories.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.registry import ROOT, find_experiment, read_config
from rml.errors import UserError

RELATIONS = {">=": "≥", "<=": "≤"}
RESULT_LINE = re.compile(r"^Result: results/.*$", re.MULTILINE)
"""Line of a config's docstring that says where its result stands and how long a run took."""
DATA_SETS = "data"
"""Folder among those of systems in which data sets are measured, see `experiments.cards`."""
BENCHMARKS = "benchmarks"
"""Folder among them with what benchmarks measured, see `benchmarks.record`."""
CHANGED = "the config has changed since"
RESTATED = "stated otherwise since"
NULL_MEETS = "the mean of its null meets it too"
LATE = "stated after the first measurement"
REVISED = "stated, or compared otherwise, after a first measurement"
TELLS_OF_CHANGE = re.compile(
    r"\b(?:first (?:run|measurement|look)s?|after measuring|stated after|that one at first)\b"
    r"|\buntil (?:\d|after|one run|\w+ was measured)"
)
"""Words by which a claim's source tells that a measurement came before the claim as it stands."""
STATEMENT = ("statement", "metric", "relation", "threshold", "stated")
"""What makes a claim another one where it changes."""
NOT_MEASURED = ("seed", "mesh", "bed.run")
"""Keys of a config that do not tell measurements apart: the last is where a run lies that is read,
and that has the same values of all other keys."""


def result_files(root: Path = ROOT / "results") -> list[Path]:
    """The files of all results of systems."""
    others = (DATA_SETS, BENCHMARKS)
    return [file for file in sorted(root.glob("*/*.json")) if file.parent.name not in others]


def read_result(file: Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
      UserError: The file is damaged, such as by a merge with conflicts.
    """
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        raise UserError(f"{file} is not readable as JSON, expected a result") from None


def result_file(root: Path, key: str, config_file: str) -> Path:
    """The file of a config's result among all in a folder."""
    return root / key / f"{Path(config_file).stem}.json"


def read_results(root: Path = ROOT / "results") -> dict[str, dict[str, dict[str, Any]]]:
    """All results by system and by config, the stem of its file."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for file in result_files(root):
        found.setdefault(file.parent.name, {})[file.stem] = read_result(file)
    return found


def read_benchmarks(root: Path = ROOT / "results" / BENCHMARKS) -> dict[str, list[dict[str, Any]]]:
    """What each device measured, the latest first, by benchmark."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(root.glob("*.json"))}


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config as canonical JSON, without its seed and where it computes."""
    what = measured(config)
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def measured(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that do not tell measurements apart."""

    def kept(key: str, value: Any) -> Any:
        inner = [name.partition(".")[2] for name in NOT_MEASURED if name.startswith(f"{key}.")]
        if inner and isinstance(value, Mapping):
            return {name: own for name, own in value.items() if name not in inner}
        return value

    return {key: kept(key, own) for key, own in config.items() if key not in NOT_MEASURED}


def tells_apart(key: str) -> bool:
    """Whether a dotted key of a config tells measurements apart."""
    return not {key, key.partition(".")[0]} & {*NOT_MEASURED}


class ConfigToday(NamedTuple):
    """What tables say of the config of a result as its file has it today."""

    hash: str
    seeds: int


def config_today(result: Mapping[str, Any]) -> ConfigToday | None:
    """What the config's file of a result says today; None where there is no such file."""
    file = ROOT / result["config"]
    return _config_at(file, file.stat().st_mtime_ns) if file.is_file() else None


@cache  # a table asks it thrice a row
def _config_at(file: Path, changed: int) -> ConfigToday:
    config = read_config(str(file))
    return ConfigToday(config_hash(config.to_dict()), int(config.get("seeds", 1)))


def changed_since(result: Mapping[str, Any]) -> bool:
    """Whether the config's file says something else than when it was measured."""
    today = config_today(result)
    return today is not None and today.hash != result.get("config_hash", today.hash)


def seeds_a_run(result: Mapping[str, Any]) -> int:
    """How many seeds a run of a result had: by its arms, by itself, by its config; 1 otherwise."""
    if result.get("arms"):  # a budget may have cut them
        return len(result["arms"][0]["by_seed"])
    today = config_today(result)
    own = 1 if today is None or changed_since(result) else today.seeds
    return int(result.get("seeds_a_run", own))


def seeds(result: Mapping[str, Any]) -> int:
    """How many seeds a result is of: those of all its runs."""
    return len(result["seeds"]) * seeds_a_run(result)


def count_seeds(result: Mapping[str, Any]) -> str:
    """How many seeds a result is of, for example "3 seeds" or "1 run of 3 seeds"."""
    runs, own = len(result["seeds"]), seeds_a_run(result)
    if own == 1:
        return f"{runs} seed{'s' * (runs != 1)}"
    return f"{runs} run{'s' * (runs != 1)} of {own} seeds{' each' * (runs != 1)}"


def recipe_of(result: Mapping[str, Any]) -> Any:
    """The recipe that made a result; None if there is none of its name today."""
    try:
        return find_experiment(result.get("experiment", ""))
    except UserError:  # a run of code before its recipe moved
        return None


def claims_of_today(result: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What the recipe of a result claims today, by `STATEMENT`; None if there is no such recipe."""
    recipe = recipe_of(result)
    return recipe and [_statement(vars(claim)) for claim in recipe.CLAIMS]


def not_measured(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of today that a result does not have, as the recipe states them."""
    measured = [_statement(claim) for claim in result["claims"]]
    return [claim for claim in claims_of_today(result) or [] if claim not in measured]


def _statement(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {name: claim.get(name) for name in STATEMENT}


def reason_to_keep(file: Path, run_hash: str, seeds: Collection[int]) -> str | None:
    """Why a result stays: it has seeds of the same config that the new one lacks.

    Args:
      file: The result's file.
      run_hash: Hash of the config that is measured.
      seeds: Seeds of the new result.

    Returns:
      The reason; None where the result may be replaced, as one whose nulls were not measured may.
    """
    old = read_result(file) if file.exists() else None
    if old is None or old["config_hash"] != run_hash or {*old["seeds"]} <= {*seeds}:
        return None
    if not all(claim.get("null_values") for claim in old["claims"]):
        return None
    there = len(old["seeds"])
    if there > len(seeds):
        return f"{file} has {there} seeds of this config and is kept, not one of {len(seeds)}"
    return (
        f"{file} has seeds {old['seeds']} of this config and is kept, not one of {sorted(seeds)}; "
        "--join keeps both"
    )


class Number(float):
    """A float whose format may end in p, for points: `f"{Number(0.0123):+.1p}"` is "+1.2"."""

    def __format__(self, spec: str) -> str:
        if spec.endswith("p"):
            return format(100 * float(self), f"{spec[:-1]}f").replace("-", "\u2212")
        return format(float(self), spec or ".3g").replace("-", "\u2212")


def sentence(claim: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What was found, as a reader would say it: the claim's `says` with the numbers in it.

    Args:
      claim: A measured claim of a result.
      result: The result.

    Returns:
      The sentence; the statement with its mean and interval where the claim has no other words;
      the conditions of a trial that ended at them.
    """
    if result.get("no_go"):
        return f"Not asked: {'; '.join(result['no_go'])}"
    found = interval(claim["mean"], claim["low"], claim["high"])
    if not claim.get("says") or claim["mean"] is None:
        return f"{claim['statement']}: {found}"
    values = {
        name: Number(sum(runs) / len(runs))
        for name, runs in result["metrics"].items()
        if None not in runs
    }
    values |= {
        name: Number(claim[name]) for name in ("mean", "low", "high") if claim[name] is not None
    }
    over = result.get("names", {}).get(claim["metric"], "")
    return str(claim["says"]).format(**(values | {"over": over}))


def count_verdicts(claims: Iterable[Mapping[str, Any]]) -> str:
    """How many claims hold, for example "4 of 6 hold, 1 undecided, 1 not reproduced"."""
    verdicts = [claim["verdict"] for claim in claims]
    once = [verdict for verdict in verdicts if verdict.startswith("one run")]
    several = [verdict for verdict in verdicts if not verdict.startswith("one run")]
    parts = []
    if several:
        held = several.count("holds")
        parts.append(f"{held} of {len(several)} {'holds' if len(several) == 1 else 'hold'}")
        others = ("undecided", "not reproduced", "vacuous")
        counts = [(several.count(verdict), verdict) for verdict in others]
        parts += [f"{count} {verdict}" for count, verdict in counts if count]
    if once:
        parts.append(f"{once.count('one run: met')} of {len(once)} met in one run")
    return ", ".join(parts) or "no claims"


def null(claim: Mapping[str, Any]) -> str:
    """What was measured of a claim's null: its name, mean and interval."""
    if not claim.get("null_values"):
        return "not measured"
    ends = (claim[f"null_{name}"] for name in ("mean", "low", "high"))
    return f"{claim['null'] or claim['null_run']} {interval(*ends)}"


def null_meets(claim: Mapping[str, Any]) -> bool:
    """Whether a claim holds though its null meets it by its mean, if not by its interval."""
    mean = claim.get("null_mean")
    if claim["verdict"] != "holds" or mean is None:
        return False
    above = claim["relation"] == ">="
    return mean >= claim["threshold"] if above else mean <= claim["threshold"]


def remarks(claim: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What is to be said of a claim beside its verdict; empty where there is nothing."""
    late = claim.get("stated", "") > result.get("first_measured", result["finished"])[:10]
    # Of one day the dates do not tell which came first.
    revised = not late and TELLS_OF_CHANGE.search(claim["source"]) is not None
    today = claims_of_today(result)
    restated = today is not None and _statement(claim) not in today
    said = (
        late * LATE, revised * REVISED, changed_since(result) * CHANGED,
        restated * RESTATED, null_meets(claim) * NULL_MEETS,
    )  # fmt: skip
    note = "not asked, see the headline" if result.get("no_go") else claim["note"]
    return "; ".join(filter(None, [note, *said]))


def count_claims(claims: Iterable[Mapping[str, Any]]) -> str:
    """How many measured claims hold, and of how many the null was not measured."""
    claims = list(claims)
    absent = sum(not claim.get("null_values") for claim in claims)
    nulls = f"{absent} {'null' if absent == 1 else 'nulls'} not measured"
    return ", ".join([count_verdicts(claims), *[nulls] * bool(absent)])


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean with its interval in brackets, all to the same decimal place.

    The mean has three significant digits, more where the interval would have no width otherwise.
    """
    if mean is None:
        return "not finite"
    if low is None or high is None:
        return number(mean)
    places = max(decimals(mean, 3), decimals((high - low) / 2, 1) if high > low else 0)
    ends = f"({number(low, places)} to {number(high, places)})"
    return f"{number(mean, places)} {ends}"


def number(value: float, places: int | None = None) -> str:
    """A number to so many decimal places, or else three significant digits.

    Numbers that would need more than six places are written with an exponent.
    """
    if not math.isfinite(value):
        return str(value)
    places = decimals(value, 3) if places is None else places
    text = f"{value:.2e}" if places > 6 and value else f"{value:,.{max(places, 0)}f}"
    return text.replace("-", "−")


def decimals(value: float, digits: int) -> int:
    """The decimal places that show so many significant digits."""
    return digits - 1 - math.floor(math.log10(abs(value))) if value else 0
