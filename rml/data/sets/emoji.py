"""Emoji in four drawn styles, with names and tags in several languages."""

import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Drawn, image
from rml.data.sets import iconify
from rml.data.vector import render

STYLES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent": "fluent_emoji",
    "openmoji": "openmoji",
}
"""Asset of each style. OpenMoji is share-alike: its drawings are not to be committed."""

LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "ru", "zh")
SIDE = 64
FLAVOUR = "-fe0f"  # asks for the coloured form and is left out where sets name code points


class Emoji(Drawn):
    """3,979 emoji in up to four drawn styles, 64x64: about 15,000 drawings with names and tags.

    `base` is the emoji without skin tone. `label` is the Unicode group. `vendor` is the designer's
    own name.

    Ground truth: groups, names and tags are Unicode's (CLDR); the style is the set that a drawing
    is from.

    Splits: by base emoji, so that variants of one stay together.
    """

    name = "emoji"
    ASSETS = ("emojibase", *STYLES.values())

    def _features(self) -> dict[str, Any]:
        text, listed = tfds.features.Text(), read()
        return {
            "image": image(SIDE),
            "label": tfds.features.ClassLabel(names=_ordered(row["label"] for row in listed)),
            "subgroup": tfds.features.ClassLabel(names=_ordered(row["subgroup"] for row in listed)),
            "base": tfds.features.ClassLabel(names=_ordered(row["base"] for row in listed)),
            "style": tfds.features.ClassLabel(names=list(STYLES)),
            "code": text,
            "vendor": text,
            "names": dict.fromkeys(LANGUAGES, text),
            "tags": {language: tfds.features.Sequence(text) for language in LANGUAGES},
        }

    def _drawings(self) -> Iterable[tuple[str, dict[str, Any] | None]]:
        return _drawn()


@functools.cache
def read() -> list[dict[str, Any]]:
    """Reads all emoji with their variants of skin, without drawings, in Unicode's order."""
    wanted = [f"package/{language}/data.json" for language in LANGUAGES]
    files = {
        path: json.loads(content)
        for path, content in assets.members("emojibase", *wanted, "package/meta/groups.json")
    }
    groups = files["package/meta/groups.json"]
    words = {
        language: _words(files[path]) for language, path in zip(LANGUAGES, wanted, strict=True)
    }
    found = []
    for row in files[wanted[0]]:
        if "group" not in row:  # letters of flags, parts of other emoji
            continue
        for one in (row, *row.get("skins", [])):
            named = {language: words[language].get(one["hexcode"], ("", [])) for language in words}
            found.append(
                {
                    "label": groups["groups"][str(row["group"])],
                    "subgroup": groups["subgroups"][str(row["subgroup"])],
                    "base": row["label"],
                    "code": one["hexcode"],
                    "names": {language: name for language, (name, _) in named.items()},
                    "tags": {language: tags for language, (_, tags) in named.items()},
                }
            )
    return found


def _words(rows: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    """Name and tags of each emoji in one language; variants have the tags of their base."""
    return {
        one["hexcode"]: (one["label"], row.get("tags", []))
        for row in rows
        for one in (row, *row.get("skins", []))
    }


def _drawn() -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each drawing with its base emoji; None for one that shows nothing."""
    sets = {style: iconify.read(asset) for style, asset in STYLES.items()}
    drawings = {
        style: {_plain(code): name for code, name in one.characters.items()}
        for style, one in sets.items()
    }
    for row in read():
        for style, names in drawings.items():
            vendor = names.get(_plain(row["code"]))
            if vendor is None:
                continue
            pixels = render(sets[style].svg(vendor), SIDE)
            drawing = {**row, "image": pixels, "style": style, "vendor": vendor}
            yield row["base"], None if pixels is None else drawing


def _plain(code: str) -> str:
    return code.lower().replace(FLAVOUR, "")


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
