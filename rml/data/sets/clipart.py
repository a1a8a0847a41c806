"""Open Clip Art: drawings of many people with titles, tags, creators and folders."""

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from rml import assets
from rml.data.duplicates import normalized
from rml.data.packaged import Drawn, image
from rml.data.vector import render

ROOT = "usr/share/openclipart/svg/"
SIDE = 64
DROPPED = re.compile("(^|/)(stars|flat-theme|lemon-theme|etiquette-theme)/")
"""Folders that a program drew, or that are themes of a desktop."""

DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
UNITS = {"pt": 1.25, "px": 1, "mm": 3.543307, "cm": 35.43307, "in": 90, "pc": 15, "": 1}  # pixels
SIZE = 400.0  # pixels, of drawings that do not say


class Description(NamedTuple):
    """What a drawing's own metadata says; empty where it says nothing."""

    title: str
    creator: str
    tags: list[str]


class Clipart(Drawn):
    """Open Clip Art's drawings, 64x64, with title, tags, creator and folder.

    `label` is the uppermost folder, "none" where a drawing lies in no folder; `folder` is the whole
    path. Themes of icons and machine-drawn stars are dropped. Text has the fonts of the machine
    that prepares it.

    Ground truth: each file's own metadata and the folder that the collection's editors put it into.

    Splits: drawings of one creator whose titles differ in numbers alone stay together.
    """

    name = "clipart"
    ASSETS = ("openclipart",)

    def _features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        return {
            "image": image(SIDE),
            "label": tfds.features.ClassLabel(names=sorted({_top(path) for path, _ in files()})),
            "title": text,
            "creator": text,
            "folder": text,
            "tags": tfds.features.Sequence(text),
        }

    def _drawings(self) -> Iterable[tuple[str, dict[str, Any] | None]]:
        found = files()
        files.cache_clear()  # 160 MB that nobody reads again
        return _drawn(found)


@functools.cache
def files() -> list[tuple[str, str]]:
    """Reads path below the collection and SVG document of each drawing that is kept, by path."""
    found = (
        (path.removeprefix(ROOT), content.decode("utf-8", "replace"))
        for path, content in assets.members("openclipart", f"{ROOT}*.svg")
    )
    return sorted((path, svg) for path, svg in found if not DROPPED.search(path))


def describe(svg: str) -> Description:
    """Reads a drawing's metadata (RDF, Dublin Core)."""
    try:
        root = ET.fromstring(svg)
    except ET.ParseError:
        return Description("", "", [])
    title = creator = ""
    tags: list[str] = []
    for work in root.iter():
        if isinstance(work.tag, str) and work.tag.endswith("}Work"):
            title = (work.findtext(f"{DC}title") or "").strip()
            for subject in work.iter(f"{DC}subject"):
                tags += [(tag.text or "").strip().lower() for tag in subject.iter(f"{RDF}li")]
            names = (name for one in work.iter(f"{DC}creator") for name in one.iter(f"{DC}title"))
            creator = next(((name.text or "").strip() for name in names if name.text), "")
            break
    return Description(title, creator, list(dict.fromkeys(tag for tag in tags if tag)))


def with_plain_size(svg: str) -> str:
    """Gives a drawing its size in pixels: a third of them have units that renderers do not read."""
    match = re.search(r"<(?:svg:)?svg\b[^>]*>", svg, re.DOTALL)
    if match is None:
        return svg
    tag = match[0]
    box = re.search(r'viewBox\s*=\s*["\']([^"\']*)', tag)
    numbers = [float(part) for part in re.split(r"[\s,]+", box[1].strip())] if box else []
    width = _pixels(tag, "width") or (numbers[2] if box else None)
    height = _pixels(tag, "height") or (numbers[3] if box else None)
    tag = re.sub(r'\s(width|height)\s*=\s*("[^"]*"|\'[^\']*\')', "", tag).rstrip(">").rstrip("/")
    if not width or not height:
        width = height = SIZE
    if not box:
        tag += f' viewBox="0 0 {width} {height}"'
    empty = "/" * match[0].endswith("/>")
    tag += f' width="{width}" height="{height}"{empty}>'
    return svg[: match.start()] + tag + svg[match.end() :]


def _pixels(tag: str, attribute: str) -> float | None:
    found = re.search(rf'\s{attribute}\s*=\s*["\']\s*([\d.]+)\s*([a-z%]*)', tag)
    return float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else None


def _top(path: str) -> str:
    return path.split("/")[0] if "/" in path else "none"


def _drawn(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each drawing with the key of its group; None for one that shows nothing or is broken."""
    for path, svg in found:
        try:
            pixels = render(with_plain_size(svg), SIDE)
        except (ValueError, IndexError):  # a view box that is none
            pixels = None
        if pixels is None:
            yield "", None
            continue
        title, creator, tags = describe(svg)
        series = normalized(re.sub(r"\d+", "", title or path.rpartition("/")[2]))
        yield (
            f"{creator} {series}",
            {
                "image": pixels,
                "label": _top(path),
                "title": title,
                "creator": creator,
                "folder": path.rpartition("/")[0],
                "tags": tags,
            },
        )
