"""Base training of a ResNet-18 on characters in many fonts; for an accelerator.

python -m experiments.run --config=configs/fewshot/base_glyphs_resnet18.py \
    --workdir=runs/base_glyphs_resnet18

Not trained to the end here; its options are those of the ConvNet, unchosen.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_glyphs


def get_config() -> ConfigDict:
    config = base_glyphs.get_config()
    config.model = dict(name="resnet18", stem="cifar")
    config.train.update(dict(steps=5000, eval_every=1000, checkpoint_every=1000))
    return config
