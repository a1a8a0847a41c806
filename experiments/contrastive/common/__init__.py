"""What the contrastive experiments share: the model, its views, how features are judged."""

from experiments.contrastive.common.draw import draw_curves, draw_views
from experiments.contrastive.common.judge import Judge, Splits, open_split
from experiments.contrastive.common.model import (
    PredictedEncoder,
    ProjectedEncoder,
    apply_in_groups,
    apply_to_views,
    augmentation,
    batch_spec,
    build_model,
    initializer,
    variables,
)
from experiments.contrastive.common.pretrain import (
    captions,
    momentum_task,
    pretrain,
    surroundings,
)

__all__ = [
    "Judge",
    "PredictedEncoder",
    "ProjectedEncoder",
    "Splits",
    "apply_in_groups",
    "apply_to_views",
    "augmentation",
    "batch_spec",
    "build_model",
    "captions",
    "draw_curves",
    "draw_views",
    "initializer",
    "momentum_task",
    "open_split",
    "pretrain",
    "surroundings",
    "variables",
]
