"""SupCon's choices one at a time on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_supcon_fashion.py \
    --workdir=runs/supcon_ablation

Result: results/supcon, 22 min 17 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.contrastive import supcon_fashion
from configs.contrastive.parts import as_many_images


def get_config() -> ConfigDict:
    config = supcon_fashion.get_config()
    config.experiment = "contrastive.supcon_ablation"
    config.recipe, config.seeds = "contrastive.supcon", 3
    config.head.layers = 2
    config.train.update(dict(steps=300, eval_every=0, checkpoint_every=300))
    # Each is the config above but for these values.
    config.variants = dict(
        form_in="loss.form=in",
        temperature_0_05="loss.temperature=0.05",
        temperature_0_5="loss.temperature=0.5",
        temperature_1="loss.temperature=1.0",
        batch_64=as_many_images(config, 64),
        linear_head="head.layers=1",
        erased_only="augment.order=random_erase",  # without flips and warps
    )
    return config
