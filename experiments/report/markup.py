"""HTML that is escaped unless it was built here, and numbers as people read them."""

import html
import math
import re
from typing import Any


class Markup(str):
    """Text that is HTML already."""


def escape(value: Any) -> Markup:
    """Any value as HTML: markup as it is, sequences joined, the rest escaped, None as nothing."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    if isinstance(value, list | tuple):
        return Markup("".join(map(escape, value)))
    return Markup(html.escape(str(value)))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
      name: Element, e.g. "td".
      *children: Content, escaped by `escape`.
      **attributes: Attributes; `class_` is class, `data_run` is data-run; True stands without a
        value, None and False are left out.

    Returns:
      The markup.
    """
    text = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        text += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in ("img", "input", "line", "circle"):
        return Markup(f"<{name}{text}>" if name in ("img", "input") else f"<{name}{text}/>")
    return Markup(f"<{name}{text}>{escape(children)}</{name}>")


def breakable(text: str) -> Markup:
    """A path or dotted name that may be broken after its separators, and only there."""
    return Markup("".join(escape(p) + "<wbr>" * (p in "/._") for p in re.split(r"([/._])", text)))


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "nan")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def with_spread(mean: float, spread: float) -> str:
    """A mean and its spread, both to the spread's second digit."""
    if not (math.isfinite(spread) and spread > 0):
        return f"{number(mean)} ± {number(spread)}"
    digits = 1 - math.floor(math.log10(spread))
    if not 0 <= digits <= 6:
        return f"{number(mean)} ± {spread:.2g}"
    return f"{mean:,.{digits}f} ± {spread:.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as `97 s`, `12 min 5 s`, `3 h 20 min` or `2 d 3 h`."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 100:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    for unit, size, lower, lower_size in (
        ("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1),
    ):  # fmt: skip
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole}\u00a0{unit} {rest // lower_size}\u00a0{lower}"
    raise AssertionError("not reached: at least a minute")
