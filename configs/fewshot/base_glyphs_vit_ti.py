"""Base training of a ViT-Ti with patches of 7x7 on characters in many fonts; for an accelerator.

python -m experiments.run --config=configs/fewshot/base_glyphs_vit_ti.py \
    --workdir=runs/base_glyphs_vit_ti

Not trained to the end here; its options are those of the ConvNet, unchosen.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_glyphs


def get_config() -> ConfigDict:
    config = base_glyphs.get_config()
    config.model = dict(name="vit_ti", patch_size=7)
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=200))
    config.train.update(dict(steps=5000, eval_every=1000, checkpoint_every=1000))
    return config
