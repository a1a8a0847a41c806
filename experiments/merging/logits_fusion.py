"""Dynamic logits fusion: experts of a small language model steer a large one, token by token.

Fan et al., On Giant's Shoulders, arXiv:2406.15480. A large and a small decoder are trained here on
one collection of texts; the small one is fine-tuned on four others. Beside the weight chosen at
every token stand weight 1 (proxy tuning), the weight that is best on validation texts, the mean of
the logits, contrastive decoding of the large model against the small one, an adapter of the large
model and its whole fine-tuning; for several experts at once their task arithmetic, equal weights,
and one small model of all collections. Every fine-tuning tries equally many rates on validation
texts. Ways are held against each other by nats of test texts and by what they write after half a
window. Sizes and margins are this repository's.
"""

from typing import Any

import numpy as np

from experiments.common import small_lm
from experiments.merging import logits_figures
from experiments.merging.bed import take
from experiments.merging.logits_costs import choosing_cost, choosing_flops, training_share
from experiments.merging.logits_measures import contrasted, of_one, of_several
from experiments.merging.logits_models import LARGE, make_models, read_texts, sized
from experiments.merging.logits_readings import grid, read, read_fixed
from experiments.merging.logits_writing import compared, write
from experiments.ranges import Range
from rml.errors import UserError
from rml.models.attention import attend
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2406.15480; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("A weight chosen at every token loses at most what the weight does that is best on "
          "validation texts",
          "gain_over_fixed", ">=", 0.0, f"{SOURCE}, figure of fixed weights; uncertain",
          stated="2026-11-26", null="gain_over_fixed_shuffled",
          says="A weight chosen at every token saves {mean:+.3f} nats over the best fixed one "
          "({nats_dynamic:.2f} against {nats_fixed:.2f}; the small expert alone has "
          "{nats_expert:.2f})"),
    Claim("It loses 0.01 nats less than weight 1",
          "gain_over_proxy", ">=", 0.01, f"{SOURCE}, table 1",
          stated="2026-11-26", null="gain_over_proxy_shuffled",
          says="A weight chosen at every token saves {mean:+.3f} nats over a weight of 1, which is "
          "proxy tuning ({nats_proxy:.2f})"),
    Claim("The wholly tuned large model has at least 0.9 of its nats",
          "ratio_to_tuned", ">=", 0.9, f"{SOURCE}; the paper's ratio is of accuracies",
          stated="2026-11-26", null="ratio_to_tuned_large",
          says="The wholly tuned large model has {mean:.2f} of the fusion's loss, which closes "
          "{gap_closed:.0%} of the gap to it"),
    Claim("On an unseen collection one of four experts costs at most 0.5% of the large's nats",
          "rise_unseen", "<=", 0.005, f"{SOURCE}, table on unseen tasks; the null, all experts by "
          "equal weights, was changed after the first measurement",
          stated="2026-11-30", null="rise_unseen_uniform",
          says="On an unseen collection one of four experts a token changes the large model's loss "
          "by {mean:+.1%}, all four by equal weights by {rise_unseen_uniform:+.1%}"),
)  # fmt: skip
RANGES = {
    "alpha.points": Range(3, whole=True), "alpha.high": Range(1),
    "timing.texts": Range(1, whole=True), "timing.prompt": Range(1, whole=True),
    "timing.steps": Range(1, whole=True), "timing.repeats": Range(1, whole=True),
    "writing.prompt": Range(1, whole=True), "writing.steps": Range(2, whole=True),
}  # fmt: skip
CAPTIONS = logits_figures.CAPTIONS
PICTURE = "methods.png"
STAGED = True  # experts begin from the models of the general collection


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all models, reads test texts by every way, compares, draws."""
    check(config)
    texts = read_texts(config)
    windows = {  # a text that is too short is named before anything trains
        part: {
            name: text.windows(part, config.text.length, config.text.windows)
            for name, text in texts.items() if name != config.data.general
        }
        for part in ("validation", "test")
    }  # fmt: skip
    models = make_models(config, run, texts)
    domains = list(config.data.domains)
    own = [take(models.experts, at) for at in range(len(domains))]
    fixed = {
        name: read_fixed(config, models, expert, windows["validation"][name])
        for name, expert in zip(domains, own, strict=True)
    }
    test = {
        name: read(config, models, models.experts, at, windows["test"][name])
        for at, name in enumerate(domains)
    }
    whole = {
        kind: {
            name: small_lm.nats(sized(config, LARGE), attend, [params], windows["test"][name])[0]
            for name, params in by_domain.items()
        }
        for kind, by_domain in (("tuned", models.tuned), ("lora", models.lora))
    }
    whole["contrastive"], metrics = contrasted(config, models, windows)
    metrics |= {f"rate_{kind}": rate for kind, rate in models.rates.items()}
    metrics |= of_one(config, fixed, test, whole)
    Progress().note(
        f"nats a token: large {metrics['nats_large']:.3f}, weight 1 {metrics['nats_proxy']:.3f}, "
        f"chosen {metrics['nats_dynamic']:.3f}, tuned {metrics['nats_tuned']:.3f}"
    )
    others, active = of_several(config, models, windows, test)
    metrics |= others | training_share(config, texts[domains[0]], models)
    metrics |= choosing_cost(config, models, windows["test"][domains[0]]) | choosing_flops(config)
    weights = {name: metrics[f"fixed_alpha_{name}"] for name in domains}
    writings = {
        name: write(config, models, texts[name], name, weights[name], windows["test"][name])
        for name in domains
    }
    metrics |= compared(writings)
    logits_figures.draw(config, run, test, whole, weights, active)
    logits_figures.draw_writing(run, {name: own.rouge for name, own in writings.items()})
    words = {
        name: [texts[name].tokenizer.decode([token], skip_special_tokens=False)
               for token in windows["test"][name][0, 1:]]
        for name in domains[: logits_figures.WINDOWS]
    }  # fmt: skip
    logits_figures.draw_tokens(run, domains, words, {name: test[name].active[0] for name in words})
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if len(config.data.domains) < 2:
        raise UserError(f"data.domains is {config.data.domains}, expected two collections or more")
    if not np.isclose(grid(config), 1.0).any():
        raise UserError(
            f"alpha.high={config.alpha.high} and alpha.points={config.alpha.points} give weights "
            "without 1, expected it among them"
        )
    for key, own in (("tuning.rates", config.tuning.rates), ("alpha.scales", config.alpha.scales)):
        if not own:
            raise UserError(f"{key} is empty, expected at least one to choose from")
    length = config.text.length
    for part in ("timing", "writing"):
        prompt, steps = config[part].prompt, config[part].steps
        if prompt + steps > length:
            raise UserError(
                f"{part}.prompt={prompt} and {part}.steps={steps} are more than the {length} "
                "tokens of text.length, expected at most as many"
            )


def tries(config: Any) -> dict[str, int]:
    """How many rates, weights and scales validation texts choose from, by way.

    Ways of the experts have the rate of these; a weight chosen at every token is no option.
    """
    rates, points = len(config.tuning.rates), config.alpha.points
    of_experts = ("expert", "mean", "proxy", "dynamic", "refined", "shuffled", "same_mean",
                  "several", "uniform")  # fmt: skip
    return {
        **dict.fromkeys((*of_experts, "multitask", "tuned", "lora"), rates),
        "fixed": rates + points,
        "contrastive": points,
        "arithmetic": rates + len(config.alpha.scales),
    }
