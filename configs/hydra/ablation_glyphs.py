"""Hydra's choices one at a time on 400 characters: sampling, gates, filter, the published forms.

python -m experiments.run --config=configs/hydra/ablation_glyphs.py --workdir=runs/hydra_ablation

Result: results/hydra, 39 min 4 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_glyphs

PAPER_FILTER = "filter.combine=mean filter.norm=batch"
PUBLISHED = (
    f"{PAPER_FILTER} pairs.sampling=batch head.norm=True projections.norm=layer "
    "projections.probe=True loss.positives=partner loss.itself=True loss.reduction=positives "
    "loss.penalty=0.0"
)


def get_config() -> ConfigDict:
    config = hydra_glyphs.get_config()
    config.experiment = "hydra.ablation"
    config.head.norm = False
    config.train.update(dict(steps=150, eval_every=0, checkpoint_every=150))
    # Each is the config above but for these values.
    config.variants = dict(
        uniform="pairs.sampling=uniform",
        batch="pairs.sampling=batch",
        identical="pairs.sampling=identical",
        distinct="pairs.sampling=distinct",
        open="filter.gate=open",
        straight_through="filter.gate=straight_through",
        concrete="filter.gate=concrete",
        stochastic="filter.gate=stochastic loss.penalized=openness",
        product="filter.combine=product",
        concat="filter.combine=concat",
        paper_filter=PAPER_FILTER,
        published=PUBLISHED,
        later=f"{PUBLISHED} loss.renormalize=False loss.views=other loss.learned=True "
        "loss.ungated=0.1",
    )
    return config
