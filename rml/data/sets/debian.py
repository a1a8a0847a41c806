"""Debian's packages: what they are in words, their sections, tags and recommendations."""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from rml import assets
from rml.data.errors import DataError
from rml.data.packaged import Fetched

LANGUAGES = ("de", "es", "fr", "it", "ja")
WORDS = 25  # of the shortest description
DROPPED = ("debug", "oldlibs", "metapackages", "tasks")  # sections
LETTER = "[A-Za-zÀ-ɏ]"
"""What a name is no word beside; no kana, which stand beside names without a space."""
DOTS = re.compile("[ıİ]")
"""Letters that a search without regard to case takes for an i, and folding of case does not."""


class Debian(Fetched):
    """Synopsis and description of Debian's packages with section, tags, maintainer and relations.

    One package of each source, descriptions of 25 words or more without the package's own name,
    distinct. `recommends` names other packages that a user would want beside it. Its one config is
    the date of the lists.

    Ground truth: maintainers write synopsis and description and choose section and relations;
    `tags` are volunteers' and incomplete.

    Splits: by source package.
    """

    name = "debian"
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.1.0": "A package's name stays where it is a part of a word."}
    ASSETS = ("debian_lists",)
    DATED = True

    @tfds.core.utils.classproperty
    @classmethod
    @functools.cache
    def BUILDER_CONFIGS(cls) -> list[tfds.core.BuilderConfig]:
        """The release that was fetched."""
        release = assets.read("debian_lists", "InRelease").decode()
        found = re.search(r"^Date: \w+, (\d+) (\w+) (\d+)", release, re.MULTILINE)
        if found is None:
            raise DataError("the lists of Debian bear no date: fetch asset 'debian_lists' again")
        day, month, year = found.groups()
        number = "JanFebMarAprMayJunJulAugSepOctNovDec".index(month) // 3 + 1
        return [tfds.core.BuilderConfig(name=f"{year}-{number:02}-{int(day):02}")]

    @classmethod
    def directory(cls) -> Path:
        """Returns where it is prepared below the data directory."""
        return Path(cls.name, cls.BUILDER_CONFIGS[0].name, str(cls.VERSION))

    def _features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        sections = sorted({row["label"] for row in read()})
        return {
            "package": text,
            "source": text,
            "maintainer": text,
            "synopsis": text,
            "description": text,
            "translations": dict.fromkeys(LANGUAGES, text),
            "tags": tfds.features.Sequence(text),
            "recommends": tfds.features.Sequence(text),
            "label": tfds.features.ClassLabel(names=sections),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((row["source"], row) for row in read())


@functools.cache
def read() -> list[dict[str, Any]]:
    """Reads the packages that are kept, in the order of Debian's list."""
    files = dict(assets.members("debian_lists", "Packages", "Translation-*"))
    words = {
        language: {
            one["Description-md5"]: one[f"Description-{language}"]
            for one in stanzas(files[f"Translation-{language}"].decode("utf-8", "replace"))
            if f"Description-{language}" in one
        }
        for language in ("en", *LANGUAGES)
    }
    found: list[dict[str, Any]] = []
    sources: set[str] = set()
    texts: set[str] = set()
    for one in stanzas(files["Packages"].decode()):
        name, key = one["Package"], one.get("Description-md5", "")
        source = one.get("Source", name).split()[0]
        section = one.get("Section", "none")
        if key not in words["en"] or source in sources or section in DROPPED:
            continue
        synopsis, description = described(words["en"][key], name)
        if len(description.split()) < WORDS or {synopsis, description[:200]} & texts:
            continue
        sources.add(source)
        texts |= {synopsis, description[:200]}
        found.append(
            {
                "package": name,
                "source": source,
                "maintainer": one.get("Maintainer", ""),
                "synopsis": synopsis,
                "description": description,
                "translations": {
                    language: " ".join(described(words[language][key], name))
                    if key in words[language]
                    else ""
                    for language in LANGUAGES
                },
                "tags": tags(one.get("Tag", "")),
                "recommends": names(f"{one.get('Recommends', '')},{one.get('Suggests', '')}"),
                "label": section,
            }
        )
    known = {row["package"] for row in found}
    for row in found:
        row["recommends"] = [name for name in row["recommends"] if name in known]
    return found


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Reads fields of each stanza of a control file; lines that continue one keep their breaks."""
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[key] += "\n" + line[1:]
            elif line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def described(text: str, package: str) -> tuple[str, str]:
    """Reads synopsis and description, both without the package's name where it is a word."""
    # Most texts lack the name, and a pattern takes longer to compile than all else here.
    if package.casefold() in text.casefold() or DOTS.search(text):
        text = re.sub(rf"(?<!{LETTER}){re.escape(package)}(?!{LETTER})", "it", text, flags=re.I)
    synopsis, _, body = text.partition("\n")
    lines = ("" if line.strip() == "." else line for line in body.split("\n"))
    return synopsis.strip(), re.sub(r"\s+", " ", " ".join(lines)).strip()


def tags(text: str) -> list[str]:
    """Reads debtags, those that share a beginning spelled out: `a::{b,c}` is `a::b` and `a::c`."""
    found = []
    for tag in re.split(r",\s*(?![^{]*\})", text.replace("\n", " ")):
        several = re.match(r"(.*)\{(.*)\}$", tag.strip())
        found += (
            [several[1] + end.strip() for end in several[2].split(",")]
            if several
            else [tag.strip()]
        )
    return [tag for tag in found if tag]


def names(relation: str) -> list[str]:
    """Lists names of the packages that a relation mentions, alternatives too."""
    parts = (re.split(r"[ (:]", part.strip())[0] for part in re.split(r"[,|]", relation))
    return list(dict.fromkeys(part for part in parts if part))
