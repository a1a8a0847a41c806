"""Writes scalekd.npz anew: the authors' projectors and losses of drawn maps, in float64.

    git clone https://github.com/deep-optimization/ScaleKD CLONE; git -C CLONE checkout 478a7db
    python tests/distillation/golden/make_scalekd.py CLONE

It needs torch. Placeholders stand for mmcv, mmengine and the clone's other modules.
"""

import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn

NAMES = """mmcls.registry mmcls.models.dis_losses mmcls.models.utils.helpers mmengine.utils
mmcls.models.utils.layer_scale mmcv.cnn.bricks.drop mmcv.cnn.bricks.transformer
mmengine.model.weight_init"""


class Residual(nn.Sequential):
    """x + W₂ ReLU(W₁ x), as mmcv's FFN is by default."""

    def __init__(self, embed_dims, feedforward_channels):
        first = nn.Linear(embed_dims, feedforward_channels)
        super().__init__(first, nn.ReLU(), nn.Linear(feedforward_channels, embed_dims))

    def forward(self, x):
        return x + super().forward(x)


PLACE = MagicMock(__spec__=None, FFN=Residual, digit_version=len)
PLACE.BaseModule = PLACE.build_dropout = nn.Identity  # which takes any argument
PLACE.__path__ = [f"{sys.argv[1]}/mmcls/models/dis_losses"]
PLACE.MODELS.register_module = lambda: lambda own: own
sys.modules |= {name.rsplit(".", i)[0]: PLACE for name in NAMES.split() for i in range(4)}
fmd = import_module("mmcls.models.dis_losses.fmd")
torch.set_default_dtype(torch.float64)
RNG = np.random.default_rng(0)
tenths = lambda shape, low=-9: torch.tensor(RNG.integers(low, 12, shape)) / 10  # noqa: E731
both = fmd.FreqMaskingDistillLoss(
    "", True, (0.08, 0.06), 5, 6, (3, 3), (3, 4), 6, softmax_scale=(5.0, 1.7), num_heads=2
)
shapes = {k: v.shape for k, v in both.state_dict().items() if "batches" not in k}
state = {k: tenths(shape, 3 if "var" in k else -9) for k, shape in shapes.items()}
drawn = {"x": tenths((2, 5, 3, 4)), "teacher": tenths((2, 6, 3, 3)), "query": tenths((2, 9, 6))}
drawn["weights"] = torch.cat([v.flatten() for v in state.values()]).reshape(2, -1)
found = {k: (10 * v).round().to(torch.int8) for k, v in drawn.items()}
teacher, x = drawn["teacher"], drawn["x"].requires_grad_()
for name, query in {"learned": None, "given": drawn["query"]}.items():
    both.train(query is None).load_state_dict(state, strict=False)
    views = both.project_feat_spat(x, query), both.project_feat_freq(x, query)
    losses = both.get_spat_loss(views[0], teacher), both.get_freq_loss(views[1], teacher)
    found |= {f"{name}_views": torch.stack(views), f"{name}_losses": torch.stack(losses)}
    (found[f"{name}_gradient"],) = torch.autograd.grad(sum(losses), x)
path = Path(__file__).parent / "scalekd.npz"
np.savez_compressed(path, **{k: v.detach() for k, v in found.items()})
