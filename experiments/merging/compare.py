"""Methods of merging ranked on one bed of eight experts, on the same validation images.

Ways differ in how many candidates they judge there, and in what they cost; the result tells both.
Costs are floating-point operations and seconds until the model is there, and bytes that are kept
for it. Each way is called once, one after another: its seconds have in them the compilation of what
no earlier way, or earlier run with the same cache, had compiled, and compare ways only where they
are far apart. Twin-merging keeps more than one model, and a router that reads training images
without labels. Claims are those of the papers of simple methods: TIES (Yadav et al.,
arXiv:2306.01708), DARE (Yu et al., arXiv:2311.03099), RegMean (Jin et al., arXiv:2212.09849) and
AdaMerging (Yang et al., arXiv:2310.02575), beside task arithmetic (Ilharco et al.,
arXiv:2212.04089). Models, data and margins are this repository's.
"""

import time
from typing import Any

import jax

from experiments.merging import compare_figures
from experiments.merging.bed import of_bed, open_bed, take
from experiments.merging.compare_ways import BEHIND, forward_flops, twin, ways
from experiments.merging.judging import Reading, differences, judged, read
from experiments.merging.ranking import ensembled, on_their_own, tries_of
from experiments.ranges import Range
from rml.ops import trees
from rml.training import Claim, Progress, RunDirectory

SOURCE = "model, data and margin are this repository's"
STATED = "2026-11-27"
CLAIMS = (
    Claim("TIES is above task arithmetic", "ties_over_arithmetic", ">=", 0.0,
          f"arXiv:2306.01708; {SOURCE}; margin 0 since 2026-12-04", stated="2026-12-04",
          null="average_over_arithmetic",
          says="TIES changes accuracy by {mean:+.1p} points over task arithmetic, which keeps "
          "{accuracy_arithmetic:.0%} of the experts' (the plain average {accuracy_average:.0%})"),
    Claim("Nine entries of ten dropped, and the others rescaled, cost task arithmetic at most half "
          "a point", "dropped_lost", "<=", 0.005, f"arXiv:2311.03099; {SOURCE}", stated=STATED,
          null="unscaled_lost",
          says="All entries of the vectors change accuracy by {mean:+.1p} points over a tenth of "
          "them, rescaled (DARE); over a tenth as it is, by {unscaled_lost:+.1p}"),
    Claim("AdaMerging is above task arithmetic by 2 points", "adamerging_over_arithmetic", ">=",
          0.02, f"arXiv:2310.02575; {SOURCE}", stated=STATED, null="noise_over_arithmetic",
          says="AdaMerging changes accuracy by {mean:+.1p} points over task arithmetic; learned "
          "from noise, by {noise_over_arithmetic:+.1p}"),
)  # fmt: skip
PAIRS = {
    "ties_over_arithmetic": ("ties", "arithmetic"), "dare_over_arithmetic": ("dare", "arithmetic"),
    "average_over_arithmetic": ("average", "arithmetic"),
    "dropped_lost": ("arithmetic", "dropped"), "unscaled_lost": ("arithmetic", "unscaled"),
    "adamerging_over_arithmetic": ("adamerging", "arithmetic"),
    "noise_over_arithmetic": ("noise", "arithmetic"),
    "regmean_over_average": ("regmean", "average"),
    "crossed_over_average": ("crossed", "average"),
    "regmean_over_fisher": ("regmean", "fisher"),
    "regmean_over_arithmetic": ("regmean", "arithmetic"),
    "atlas_over_adamerging": ("atlas", "adamerging"),
    "ensemble_over_arithmetic": ("ensemble", "arithmetic"),
    "twin_over_arithmetic": ("twin", "arithmetic"),
    "twin_over_ensemble": ("twin", "ensemble"),
    "masked_over_adamerging": ("masked", "adamerging"),
    "masked_over_leap": ("masked", "leap"),
}  # fmt: skip
RANGES = {"search.tries": Range(2, whole=True), "dropped.rate": Range(0, 1, below=True)}
READS = of_bed
CAPTIONS = compare_figures.CAPTIONS
PICTURE = "ranking.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains or opens the bed, merges in every way, reads test images, draws."""
    bed = open_bed(config, run)
    validation, test = judged(bed, "validation"), judged(bed, "test")
    found: dict[str, Reading] = {"base": read(bed, test, bed.base)}
    flops, seconds, forward = {"base": 0.0}, {"base": 0.0}, forward_flops(config, bed)
    for name, (way, passes) in ways(config, bed, validation).items():
        start = time.perf_counter()
        params = jax.block_until_ready(way())
        seconds[name] = time.perf_counter() - start
        flops[name] = passes * forward
        found[name] = read(bed, test, params)
        Progress().note(
            f"{name}: {100 * found[name].normalised.mean():.1f}% normalised, "
            f"{seconds[name]:.1f} s, {flops[name] / 1e9:.1f} GFLOP"
        )
    for name, other in BEHIND.items():  # what it takes of the other was found before
        seconds[name] += seconds[other]
    found["ensemble"] = ensembled(bed, bed.experts, test)
    flops["ensemble"] = seconds["ensemble"] = 0.0
    copy = float(trees.count_bytes(bed.base))
    kept = dict.fromkeys(found, copy) | {"ensemble": copy * len(bed.tasks)}
    own = twin(config, bed, validation, test)
    found["twin"], seconds["twin"], flops["twin"], kept["twin"] = own
    experts = [take(bed.experts, i) for i in range(len(bed.tasks))]
    found["experts"] = on_their_own(test, [read(bed, test, own) for own in experts])
    metrics = differences("accuracy", {name: [own] for name, own in found.items()}, PAIRS)
    for name in compare_figures.NAMES:
        metrics |= {
            f"gflop_{name}": flops[name] / 1e9, f"seconds_{name}": seconds[name],
            f"bytes_{name}": kept[name],
        }  # fmt: skip
    compare_figures.draw(run, list(bed.tasks), found, metrics)
    return {name: float(value) for name, value in metrics.items()}


def tries(config: Any) -> dict[str, int]:
    """How many candidates validation images choose from, by way.

    Vectors that are dropped, or masked, have the scale of task arithmetic; the router of
    twin-merging has the best of its epochs.
    """
    search, rates = config.search.tries, len(config.mask.learning_rates)
    starts = len(tries_of(config.methods.adamerging))
    searched = ("weights", "fisher", "regmean", "crossed", "arithmetic", "ties", "dare", "dropped",
                "unscaled")  # fmt: skip
    return {
        **dict.fromkeys(searched, search),
        "concrete": search + rates,
        **dict.fromkeys(("adamerging", "noise"), starts),
        **dict.fromkeys(("masked", "leap"), rates * starts),
        "atlas": len(config.addition.rates),
        "twin": search + config.router.epochs,
    }
