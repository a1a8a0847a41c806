"""TempScale beside what else keeps embeddings of long texts apart, on docstrings and their code.

Zhou et al., arXiv:2410.24200: attention's logits are divided by one temperature in every layer of a
trained encoder. Beside it: a scale by the logarithm of the length, the mean over chunks, whitening.
Each has equally many values to choose from, by nDCG@10 of the long documents of the validation
split, and is measured on the test split.
"""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.retrieval import judge_ranking
from experiments.common.texts import TextModel
from rml.data.collections import RetrievalData, indexed
from rml.data.tokens import encode as tokenised
from rml.errors import UserError
from rml.evaluation import attention_maps, log_log_slopes, paired_bootstrap, similarity_by_length
from rml.ops import t_interval
from rml.retrieval import (
    Tuned,
    chunked_encode,
    embed,
    fit_whitening,
    scale_by_length,
    search,
    temper,
    tuned_encode,
    whiten,
)
from rml.training import Claim, Progress, RunDirectory, make_mesh

SOURCE = "Length-induced embedding collapse (arXiv:2410.24200); data and margin are ours"
CLAIMS = (
    Claim("Longer documents are more alike: rank correlation of bins of length with mean cosine "
          "above 0.8", "collapse_rank", ">=", 0.8, SOURCE,
          stated="2026-11-26", null="collapse_rank_permuted"),
    Claim("The filter rate of attention falls with length at a log-log slope of -0.1 or below",
          "filter_slope", "<=", -0.1, SOURCE, stated="2026-11-26", null="filter_slope_permuted"),
    Claim("At the lowest temperature its slope is higher by 0.02", "filter_slope_gain", ">=", 0.02,
          SOURCE, stated="2026-11-26", null="filter_slope_gain_of_halves"),
    Claim("At the chosen temperature the longest documents are alike beyond the shortest by a "
          "tenth less", "gap_shrinks", ">=", 0.1, SOURCE,
          stated="2026-11-26", null="gap_shrinks_of_halves"),
    Claim("The chosen temperature raises nDCG@10 on long documents",
          "long_gain", ">=", 0.0, SOURCE, stated="2026-11-26", null="long_gain_inverse"),
)  # fmt: skip
CAPTIONS = {
    "similarity.png": "Mean cosine of two documents of similar length, by temperature.",
    "cut.png": "Mean cosine of the same long documents cut to a length, by temperature.",
    "filter_rate.png": "Filter rate of attention (largest singular value of its centred map) "
    "against length, mean over layers and heads; bands: 95% interval over texts.",
    "ndcg.png": "nDCG@10 by length of the answer, mean over queries and 95% interval.",
}
PICTURE = "similarity.png"
PLAIN, TEMPERED = "as it is", "tempscale"
CHANGES = {TEMPERED: temper, "log_length": scale_by_length}
"""Methods with one number that is a variable of the encoder's program."""
METHODS = (*CHANGES, "chunks", "whitening")


class Vectors(NamedTuple):
    """Embeddings of a collection."""

    queries: jax.Array
    documents: jax.Array


class Embedders:
    """A trained encoder with every change, each compiled once for a shape of texts.

    What methods have in common, such as the temperature 1, is embedded once.
    """

    def __init__(self, config: Any, model: TextModel):
        """Puts the variables on the mesh.

        Args:
          config: The run's config, of which `evaluation`, `mesh` and `seed` are read.
          model: The encoder.
        """
        self.model, self.options = model, config.evaluation
        self.mesh = make_mesh(config.mesh)
        self.variables = model.init(jax.random.key(config.seed))
        self.tuned = {name: tuned_encode(model.module, how) for name, how in CHANGES.items()}
        self.chunked = functools.cache(partial(chunked_encode, model.module))
        self.longest = min(self.options.max_length, model.module.backbone.positions)
        self.embed = functools.cache(self._embed)

    def __call__(
        self, name: str, value: float, texts: Sequence[str], longest: int | None = None
    ) -> jax.Array:
        """Vectors of texts by a method, cut to `longest` tokens."""
        return self.embed(name, float(value), tuple(texts), longest or self.longest)

    def _embed(self, name: str, value: float, texts: tuple[str, ...], longest: int) -> jax.Array:
        if name in CHANGES:
            encode, variables = self.tuned[name], Tuned(self.variables, jnp.float32(value))
        else:
            encode, variables = self.chunked(int(value)), self.variables
        return jnp.asarray(
            embed(
                encode, variables, self.model.tokenizer, texts,
                max_length=longest, batch_tokens=self.options.batch_tokens,
                mesh=self.mesh,
            )
        )  # fmt: skip

    def both(self, name: str, value: float, data: RetrievalData) -> Vectors:
        """Vectors of a collection's queries and documents by a method."""
        queries = self(name, value, data.queries, self.options.query_length)
        return Vectors(queries, self(name, value, data.documents))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses each method's value, measures all methods and the collapse itself, draws."""
    tries = check(config)
    model, progress = TextModel(config), Progress()
    embedders = Embedders(config, model)
    parts = {part: sample(config, model, part) for part in ("validation", "test")}
    on, data = parts["validation"], parts["test"]
    texts = long_texts(config, model, data)
    plain = {part: embedders.both(TEMPERED, 1.0, own) for part, own in parts.items()}
    wanted = answer_lengths(model, on) >= config.long
    chosen: dict[str, float] = {}
    metrics = {f"tries_{name}": float(tries) for name in METHODS}
    for name in METHODS:
        tried = []
        for value in config.candidates[name]:
            vectors = changed(embedders, name, value, on, plain["validation"], plain["validation"])
            tried.append(float(ndcg(on, vectors)[wanted].mean()))
            progress.note(f"validation, {name} {value}: nDCG@10 {tried[-1]:.4f} on long documents")
        chosen[name] = config.candidates[name][int(np.argmax(tried))]
        metrics |= {f"chosen_{name}": float(chosen[name]), f"validation_{name}": max(tried)}
    found = {
        name: changed(embedders, name, value, data, plain["test"], plain["validation"])
        for name, value in chosen.items()
    }
    inverse = embedders.both(TEMPERED, 1.0 / chosen[TEMPERED], data)
    scores = {
        name: ndcg(data, vectors) for name, vectors in {PLAIN: plain["test"], **found}.items()
    }
    lengths = answer_lengths(model, data)
    metrics |= compare(config, scores, ndcg(data, inverse), lengths)
    one_side = Vectors(plain["test"].queries, found[TEMPERED].documents)
    metrics["long_ndcg_tempscale_of_documents"] = mean_of(
        ndcg(data, one_side), lengths, config.long
    )
    draw_ndcg(config, run, scores, lengths)
    metrics |= measure_collapse(config, run, embedders, data, texts, plain["test"], found[TEMPERED])
    metrics |= measure_filter(config, run, embedders, texts)
    return metrics


def check(config: Any) -> int:
    """Number of values that each method chooses from.

    Raises:
      UserError: Methods have different numbers, or the encoder is not a trained one with weights.
    """
    tries = {name: len(config.candidates.get(name, ())) for name in METHODS}
    if len(set(tries.values())) > 1 or not tries[TEMPERED]:
        raise UserError(f"candidates has {tries} values, expected equally many")
    if config.model.name == "bert":
        raise UserError("model.name is 'bert', which is untrained; expected 'run', 'minilm', ...")
    return tries[TEMPERED]


def sample(config: Any, model: TextModel, part: str) -> RetrievalData:
    """Documents of a part drawn by the seed, with their queries."""
    data, count = model.corpus.collection(config.data.tasks[0], part), config.documents[part]
    if count > len(data.documents):
        raise UserError(
            f"documents.{part} is {count}, expected at most the {len(data.documents)} of "
            f"{config.data.name!r} {config.data[part]!r}"
        )
    rng = np.random.default_rng([config.seed, part == "test"])
    kept = set(rng.choice(len(data.documents), count, replace=False).tolist())
    judged = [
        row for row in zip(*map(np.ndarray.tolist, data.answers), strict=True) if row[1] in kept
    ]
    queries = sorted({query for query, *_ in judged})
    return indexed(
        {data.document_ids[at]: data.documents[at] for at in sorted(kept)},
        {data.query_ids[at]: data.queries[at] for at in queries},
        [(data.query_ids[query], data.document_ids[at], grade) for query, at, grade in judged],
    )


def changed(
    embedders: Embedders, name: str, value: float, data: RetrievalData, plain: Vectors, fit: Vectors
) -> Vectors:
    """Vectors of a collection by a method; whitening is fitted on others."""
    if name != "whitening":
        return embedders.both(name, value, data)
    fitted = [fit_whitening(x, shrinkage=float(value)) for x in fit]
    # Queries and documents have one map, of the documents; each has its own centre.
    return Vectors(
        whiten(plain.queries, fitted[1]._replace(center=fitted[0].center)),
        whiten(plain.documents, fitted[1]),
    )


def ndcg(data: RetrievalData, vectors: Vectors) -> np.ndarray:
    """nDCG@10 of every query."""
    return judge_ranking(data, lambda _, k: search(*vectors, k=k))["ndcg"]


def answer_lengths(model: TextModel, data: RetrievalData) -> np.ndarray:
    """Tokens of the longest answer of every query."""
    tokens = text_lengths(model, data.documents)
    longest = np.zeros(len(data.queries), int)
    query, document, _ = data.answers
    np.maximum.at(longest, query, tokens[document])
    return longest


def text_lengths(model: TextModel, texts: Sequence[str]) -> np.ndarray:
    """Numbers of tokens, as many as the encoder's positions at most."""
    rows = tokenised(model.tokenizer, texts, max_length=model.module.backbone.positions)
    return np.array([len(row) for row in rows])


def mean_of(values: np.ndarray, lengths: np.ndarray, least: int) -> float:
    """Mean over queries whose answer has that many tokens or more."""
    return float(values[lengths >= least].mean())


def compare(
    config: Any, scores: dict[str, np.ndarray], inverse: np.ndarray, lengths: np.ndarray
) -> dict[str, float]:
    """Means of all methods, and the difference of each to the encoder as it is."""
    metrics: dict[str, float] = {}
    key = jax.random.key(config.seed)
    groups = {"long": lengths >= config.long, "short": lengths < config.short}
    for group, rows in groups.items():
        metrics[f"{group}_queries"] = float(rows.sum())
        own = {name: values[rows] for name, values in scores.items()}
        for name, values in own.items():
            metrics[f"{group}_ndcg_{name.replace(' ', '_')}"] = float(values.mean())
        against = {
            "gain": (own[TEMPERED], own[PLAIN]),
            "gain_inverse": (inverse[rows], own[PLAIN]),
            **{f"over_{name}": (own[TEMPERED], own[name]) for name in METHODS if name != TEMPERED},
        }
        for name, pair in against.items():
            test = paired_bootstrap(*map(jnp.asarray, pair), key=key)
            metrics |= with_bounds(f"{group}_{name}", test[:3])
    return metrics


def measure_collapse(
    config: Any, run: RunDirectory, embedders: Embedders, data: RetrievalData,
    texts: Sequence[str], plain: Vectors, tempered: Vectors,
) -> dict[str, float]:  # fmt: skip
    """How alike documents are by length, as they are and cut, and what the temperature changes."""
    from scipy.stats import spearmanr  # slow to import

    rng = np.random.default_rng(config.seed)
    lengths = text_lengths(embedders.model, data.documents)
    edges = jnp.asarray(config.edges)
    middle = np.sqrt(np.asarray(config.edges[:-1]) * np.asarray(config.edges[1:]))

    def bins(x: jax.Array, own: np.ndarray) -> np.ndarray:
        return np.asarray(similarity_by_length(x, jnp.asarray(own), edges).similarity)

    def rank(values: np.ndarray) -> float:
        seen = np.isfinite(values)
        return float(spearmanr(middle[seen], values[seen]).statistic)

    def gap(values: np.ndarray) -> float:
        seen = values[np.isfinite(values)]
        return float(seen[-1] - seen[0])

    lowest = min(config.candidates[TEMPERED])
    series = {
        "1": bins(plain.documents, lengths),
        f"{lowest:g}": bins(embedders(TEMPERED, lowest, data.documents), lengths),
    }
    half = rng.permutation(len(lengths)) % 2 == 0
    halves = [gap(bins(plain.documents[own], lengths[own])) for own in (half, ~half)]
    before, after = gap(series["1"]), gap(bins(tempered.documents, lengths))
    cut = {
        name: [
            float(similarity_by_length(
                embedders(TEMPERED, value, texts, longest=length), jnp.ones(len(texts)),
                jnp.asarray((0, 2)),
            ).similarity[0])
            for length in config.cuts
        ]
        for name, value in (("1", 1.0), (f"{lowest:g}", lowest))
    }  # fmt: skip
    label = "tokens (log₂)"
    named = {f"temperature {name}": (np.log2(middle), own) for name, own in series.items()}
    figures.curves(run.figure("similarity.png"), named, label, "mean cosine")
    named = {
        f"temperature {name}": (np.log2(config.cuts), np.asarray(own)) for name, own in cut.items()
    }
    figures.curves(run.figure("cut.png"), named, label, "mean cosine")
    return {
        "collapse_rank": rank(series["1"]),
        "collapse_rank_permuted": rank(bins(plain.documents, rng.permutation(lengths))),
        "collapse_rank_cut": float(spearmanr(config.cuts, cut["1"]).statistic),
        "gap": before,
        "gap_tempered": after,
        "gap_lowest": gap(series[f"{lowest:g}"]),
        "gap_cut": cut["1"][-1] - cut["1"][0],
        "gap_cut_lowest": cut[f"{lowest:g}"][-1] - cut[f"{lowest:g}"][0],
        "gap_shrinks": (before - after) / abs(before),
        "gap_shrinks_of_halves": (halves[0] - halves[1]) / abs(halves[0]),
    }


def long_texts(config: Any, model: TextModel, data: RetrievalData) -> list[str]:
    """The first documents that fill the longest cut, as many as `cut_texts` says at most.

    Raises:
      UserError: There are fewer than two for each half.
    """
    lengths = text_lengths(model, data.documents)
    rows = np.flatnonzero(lengths >= max(config.cuts))[: config.cut_texts]
    if len(rows) < 4:
        raise UserError(
            f"{len(rows)} sampled documents have the {max(config.cuts)} tokens of the longest of "
            "cuts, expected 4 or more"
        )
    return [data.documents[row] for row in rows]


def measure_filter(
    config: Any, run: RunDirectory, embedders: Embedders, texts: Sequence[str]
) -> dict[str, float]:
    """The filter rate against length, at temperature 1 and at the lowest."""
    model, cuts = embedders.model, sorted(config.cuts)
    texts = texts[: config.filter_texts]
    rows = tokenised(model.tokenizer, texts, max_length=max(cuts))

    @partial(jax.jit, static_argnames="length")
    def rate(tuned: Tuned, tokens: jax.Array, length: int) -> jax.Array:
        backbone: Any = temper(model.module, tuned.value).backbone
        own = {"params": tuned.variables["params"]["backbone"]}
        mask = jnp.ones((1, length), bool)
        states = backbone.apply(own, tokens[None, :length], mask, return_attention=True)
        return jnp.mean(attention_maps(states.attention[:, 0]).filter_rate)

    lowest, found = min(config.candidates[TEMPERED]), {}
    for temperature in (1.0, lowest):
        tuned = Tuned(embedders.variables, jnp.float32(temperature))
        found[temperature] = np.array(
            [[float(rate(tuned, jnp.asarray(row), length)) for length in cuts] for row in rows]
        )
    bands = {
        f"temperature {name:g}": (np.log2(cuts), *t_interval(own.T)) for name, own in found.items()
    }
    figures.curves(run.figure("filter_rate.png"), bands, "tokens (log₂)", "filter rate")
    slopes = {name: log_log_slopes(cuts, own) for name, own in found.items()}
    half = len(rows) // 2
    shuffled = np.random.default_rng(config.seed).permuted(found[1.0], axis=1)
    metrics: dict[str, float] = {}
    values = {
        "filter_slope": slopes[1.0],
        "filter_slope_permuted": log_log_slopes(cuts, shuffled),
        "filter_slope_gain": slopes[lowest] - slopes[1.0],
        "filter_slope_gain_of_halves": slopes[1.0][:half] - slopes[1.0][half : 2 * half],
    }
    for name, each in values.items():
        metrics |= with_bounds(name, t_interval(each))
    return metrics


def draw_ndcg(
    config: Any, run: RunDirectory, scores: dict[str, np.ndarray], lengths: np.ndarray
) -> None:
    """Bars of nDCG@10 by length of the answer and method."""
    groups = {
        f"below {config.short} tokens": lengths < config.short,
        f"to {config.long}": (lengths >= config.short) & (lengths < config.long),
        f"{config.long} or more": lengths >= config.long,
    }
    found = {
        name.replace("_", " "): [t_interval(values[rows]) for rows in groups.values()]
        for name, values in scores.items()
    }
    figures.bars(
        run.figure("ndcg.png"), list(groups),
        {name: [one.mean for one in row] for name, row in found.items()},
        {name: [one.high - one.mean for one in row] for name, row in found.items()},
        ylabel="nDCG@10",
    )  # fmt: skip
