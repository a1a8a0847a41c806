"""Manuals of five domains: pages, and which pages a third one names together."""

import gzip
import html
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Fetched

FEWEST, MOST = 2, 15  # pages that one page may name, for them to count as related


class Page(NamedTuple):
    """Text of a page without navigation, and the pages that its "See also" names or links to."""

    text: str
    see: list[str]


class Manuals(Fetched):
    """Pages of Linux's, PHP's, C++'s, PostgreSQL's and Python's manuals as Debian carries them.

    `label` is the domain and `see` the pages that a page's "See also" names; that part and all
    navigation are cut from `text`. Python's manual has no such part: there `see` holds all pages
    that a page links to, and the words of the links stay in `text`.

    Ground truth: pages that a third one names together are related (`co_cited`), by their authors'
    "See also" and in Python's manual by any link.

    Splits: by page.
    """

    name = "manuals"
    ASSETS = (
        "manpages",
        "manpages_dev",
        "php_doc",
        "cppreference",
        "postgresql_doc",
        "python_doc",
    )

    def _features(self) -> dict[str, Any]:
        return {
            "page": tfds.features.Text(),
            "text": tfds.features.Text(),
            "see": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=list(DOMAINS)),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return (
            (
                f"{domain} {name}",
                {"page": name, "text": page.text, "see": page.see, "label": domain},
            )
            for domain, read in DOMAINS.items()
            for name, page in sorted(read().items())
        )


def co_cited(see: Mapping[str, Iterable[str]]) -> Counter[tuple[str, str]]:
    """Counts for each pair of pages how many others name both.

    Args:
      see: The pages that each page names. Pages that name one or more than `MOST` do not count.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for named in see.values():
        known = sorted({page for page in named if page in see})
        if FEWEST <= len(known) <= MOST:
            pairs.update(combinations(known, 2))
    return pairs


def read_man() -> dict[str, Page]:
    """Reads pages of sections 1 to 8, by name and section such as "ls.1"."""
    pages = {}
    for asset in ("manpages", "manpages_dev"):
        for path, content in assets.members(asset, "usr/share/man/man[1-8]/*.gz"):
            source = gzip.decompress(content).decode("utf-8", "replace")
            if not re.match(r"\s*\.so ", source):  # a page that stands for another
                name = posixpath.basename(path).removesuffix(".gz")
                pages[name] = parse_man(source, name)
    return pages


def parse_man(source: str, name: str) -> Page:
    """Reads a page from troff."""
    found = re.search(r'\.SH "?SEE ALSO"?\n(.*?)(?=\n\.SH|\Z)', source, re.DOTALL)
    section = (found[1] if found else "").replace("\\-", "-")
    see = {f"{page}.{part}" for page, part in re.findall(r"\.BR ([\w.:+-]+) \((\d\w*)\)", section)}
    body = source[: found.start()] if found else source
    return Page(_squeeze(_untroff(body)), sorted(see - {name}))


REQUESTS = (
    "SH SS TP IP PP P LP RS RE EX EE nf fi in ad hy br sp ti TH TQ PD UE UR ME MT so if ie el de "
    "ds rm nr ta na nh ft ig"
)
ESCAPES = {"\\-": "-", "\\(aq": "'", "\\[aq]": "'", "\\&": "", "\\e": "\\", "\\~": " ", '"': ""}


def _untroff(source: str) -> str:
    """Text of troff source: comments, requests, fonts and escapes removed."""
    source = re.sub(r"^['.]?\\\".*\n?", "", source, flags=re.MULTILINE)
    source = re.sub(rf"^\.({REQUESTS.replace(' ', '|')})\b", "", source, flags=re.MULTILINE)
    source = re.sub(r"^\.(B|I|BR|RB|IR|RI|BI|IB|SM|SB) ", "", source, flags=re.MULTILINE)
    source = re.sub(r"\\f(\([A-Z]{2}|\[[^\]]*\]|[A-Z])", "", source)
    for escape, character in ESCAPES.items():
        source = source.replace(escape, character)
    return re.sub(r"\\\([a-z]{2}|\\\[[^\]]*\]|\\s[-+]?\d", " ", source)


def read_php() -> dict[str, Page]:
    """Reads pages of functions, classes and methods."""

    def parse(page: str, name: str) -> Page | None:
        if "." not in name.removesuffix(".html"):
            return None
        see = re.search(r'<div class="refsect1 seealso".*?</div>', page, re.DOTALL)
        body = page[: see.start()] if see else page
        kinds = "refentry|reference|section|sect1|chapter|article|book|phpdoc"
        start = re.search(rf'<div id="[^"]*" class="({kinds})', body)
        return Page(_text(body[start.start() :] if start else body), _links(see and see[0], name))

    return _read_html("php_doc", parse)


def read_cpp() -> dict[str, Page]:
    """Reads pages of the C and C++ reference."""

    def parse(page: str, name: str) -> Page | None:
        end = page.find('id="See_also"')
        body = page[:end] if end > 0 else page
        title = re.search(r"<h1[^>]*>(.*?)</h1>", body, re.DOTALL)
        body = body[title.end() :] if title else body
        body = re.sub(r'<div id="(siteSub|contentSub)".*?</div>', "", body, flags=re.DOTALL)
        body = re.sub(
            r'<div class="t-navbar".*?(?=<table class="t-dcl-begin|<p>|<h3)',
            "",
            body,
            count=1,
            flags=re.DOTALL,
        )
        head = f"{_text(title[1])}. " if title else ""
        return Page(head + _text(body), _links(page[end:] if end > 0 else None, name))

    return _read_html("cppreference", parse, below="/en/")


def read_postgres() -> dict[str, Page]:
    """Reads pages of PostgreSQL's manual."""

    def parse(page: str, name: str) -> Page | None:
        page = page.partition('<div class="navfooter"')[0]
        end = page.find("<h2>See Also</h2>")
        body = page[:end] if end > 0 else page
        start = re.search(r'<div class="(sect1|refentry|chapter)"', body)
        see = _links(page[end:] if end > 0 else None, name)
        return Page(_text(body[start.start() :] if start else body), see)

    return _read_html("postgresql_doc", parse)


def read_python() -> dict[str, Page]:
    """Reads pages of Python's manual; what a page links to counts as what it names."""

    def parse(page: str, name: str) -> Page | None:
        body = re.search(
            r'<div class="body" role="main">(.*?)<div class="sphinxsidebar', page, re.DOTALL
        )
        return Page(_text(body[1]), _links(body[1], name)) if body else None

    return _read_html("python_doc", parse, below="/html/")


DOMAINS: dict[str, Callable[[], dict[str, Page]]] = {
    "man": read_man,
    "php": read_php,
    "cpp": read_cpp,
    "postgres": read_postgres,
    "python": read_python,
}


def _read_html(
    asset: str, parse: Callable[[str, str], Page | None], *, below: str = "/html/"
) -> dict[str, Page]:
    """Pages of a manual in HTML by their paths below its root."""
    pages = {}
    for path, content in assets.members(asset, f"*{below}*.html"):
        name = path.partition(below)[2]
        page = parse(content.decode("utf-8", "replace"), name)
        if page is not None and page.text:
            pages[name] = page
    return pages


def _text(part: str) -> str:
    part = re.sub(r"<(script|style|head).*?</\1>", " ", part, flags=re.DOTALL)
    return _squeeze(html.unescape(re.sub(r"<[^>]+>", " ", part)))


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _links(part: str | None, name: str) -> list[str]:
    """Pages of the same manual that a part of a page links to."""
    targets = re.findall(r'href="([^"#?:]+\.html)', part or "")
    here = posixpath.dirname(name)
    found = {posixpath.normpath(posixpath.join(here, html.unescape(one))) for one in targets}
    return sorted(found - {name})
