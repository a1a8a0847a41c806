"""ScaleKD on ImageNet: a ResNet-50 learns in the space of a ViT-B's tokens.

python -m tpu.aot --config=configs/distillation/scalekd_imagenet2012.py --topology=v5e:4x4
python -m experiments.run --config=configs/distillation/scalekd_imagenet2012.py \
    --workdir=runs/scalekd_imagenet2012

Compiled, not trained, so there is no result to expect. The student's 100 epochs, SGD's rate for 256
images and its decay, the scale of projectors, the two last blocks of a plain teacher and all
weights are those of the public code (deep-optimization/ScaleKD at 478a7db); views weigh twice as
much in `options`, since the loss beside the teacher counts half. Other than there, the teacher is
not pretrained on more images than ImageNet's: it is trained here, or is that of another run of
this recipe, `--config.teaching.run=RUN`. A batch has 1,024 images, and rates fall by a cosine. On
several devices `--config.mesh.fsdp=4` lays the parameters of both networks over four of them.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.distillation import ofakd_imagenet2012


def get_config() -> ConfigDict:
    config = ofakd_imagenet2012.get_config()
    config.teacher = parts.vit("vit_b", freeze_patches=False)
    config.student = dict(name="resnet50")
    config.beside.update(dict(loss="scalekd", label=0.5, weight=0.5))
    config.beside.exits = {}
    config.beside.options = dict(direct=7.84, alternative=5.88, temperature=1.0)
    config.beside.tokens = dict(heads=12, scale=5.0, blocks=2)
    return config
