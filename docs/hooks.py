"""What MkDocs does for this site beside its plugins: generated pages, formulas, links in code."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.structure.files import File

from docs import generate

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
TABLE = re.compile(
    r"<table>(?=\s*<thead>\s*<tr>\s*"
    + r"\s*".join(f"<th>{name}</th>" for name in generate.COLUMNS)
    + ")"
)
VERDICT = re.compile(
    r"<td>(?=(holds|one run: met|not reproduced|one run: missed|vacuous|undecided|not measured|"
    r"not built)(?:[:;][^<]*)?</td>)"
)
NAME = re.compile(r"<code>(rml(?:\.\w+)+)</code>")


class LiteralAngles(Extension):
    """Shows `<` as it is written: docstrings have inner products, and no page has HTML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Removes the two patterns that read HTML."""
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: Any) -> Any:
    """Adds the generated pages to the navigation."""
    config.markdown_extensions.append(LiteralAngles())
    config.nav += generate.navigation()
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and the committed pictures to the files of the site."""
    for address, text in generate.pages().items():
        written = files.get_file_from_path(address)
        if written is not None:
            files.remove(written)
        files.append(File.generated(config, address, content=text))
    for address, path in generate.pictures().items():
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers show without a script, and names into links.

    Verdicts get their colour, and tables of systems the class by which the site's script finds
    them.
    """
    return NAME.sub(_link, mathml(coloured(html)))


def coloured(page: str) -> str:
    """Marks verdicts and tables of systems in a page."""
    return VERDICT.sub(_verdict, TABLE.sub('<table class="systems">', page))


def _verdict(match: re.Match) -> str:
    kind = re.sub(r"\W+", "-", match[1])
    return f'<td class="verdict {kind}">'


def mathml(page: str) -> str:
    """Replaces the formulas that Arithmatex marked in a page."""
    return FORMULA.sub(_formula, page)


def _link(match: re.Match) -> str:
    # The name in Python may be that of a module in mkdocstrings, which goes by files.
    identifier = generate.path(match[1], generate.load_library())
    return f'<autoref identifier="{identifier}" optional>{match[0]}</autoref>'


def _formula(match: re.Match) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]), display=display)
