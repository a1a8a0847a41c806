"""Writes ofakd.npz anew: what the authors' losses are of drawn logits and rows, in float64.

    git clone https://github.com/Hao840/OFAKD CLONE; git -C CLONE checkout f7bb896
    python tests/distillation/golden/make_ofakd.py CLONE

It needs torch; timm's blocks are not used, and a placeholder stands for them.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
for part in ("timm", "timm.models", "timm.models.layers", "timm.models.vision_transformer"):
    sys.modules[part] = MagicMock()
from distillers import dist, dkd, ofa, rkd  # noqa: E402

RNG = np.random.default_rng(0)
LABELS = torch.tensor([1, 4, 0, 1, 3, 2])
MASK = torch.nn.functional.one_hot(LABELS, 5)
STUDENT, TEACHER = torch.tensor(RNG.normal(0, 1.5, (2, 6, 5)))
ROWS, KNOWN = (torch.tensor(RNG.normal(0.3, 1.5, (6, d))) for d in (4, 7))


class Given(torch.nn.Module):
    """Stands for a network; its features are what it is called with, or `KNOWN`."""

    def forward(self, x, requires_feat):
        return x, [x if self.training else KNOWN]


def relational(distance, angle):
    args = SimpleNamespace(rkd_distance_weight=distance, rkd_angle_weight=angle)
    args.rkd_squared, args.rkd_eps, args.gt_loss_weight, args.kd_loss_weight = False, 1e-12, 0, 1
    method = rkd.RKD(Given(), Given(), lambda *_: 0.0, args)
    return lambda x: method(x, LABELS)[1]["loss_kd"]


LOSSES = {
    **{f"ofa_{g}": lambda x, g=g: ofa.ofa_loss(x, TEACHER, MASK, g, 1.7) for g in (0.6, 1.0, 1.5)},
    "dkd": lambda x: dkd.dkd_loss(x, TEACHER, LABELS, 1.3, 0.7, 2.5),
    "dist": lambda x: dist.dist_loss(x, TEACHER, 1.3, 0.7, 2.5),
    "rkd_distance": relational(1.0, 0.0),
    "rkd_angle": relational(0.0, 1.0),
}
found = {"distances": rkd._pdist(ROWS, False, 1e-12), "labels": LABELS}
found |= {"student": STUDENT, "teacher": TEACHER, "rows": ROWS, "known": KNOWN}
for name, loss in LOSSES.items():
    x = (ROWS if name.startswith("rkd") else STUDENT).clone().requires_grad_()
    found[name] = loss(x)
    (found[f"{name}_gradient"],) = torch.autograd.grad(found[name], x)
arrays = {name: x.detach().numpy() for name, x in found.items()}
np.savez_compressed(Path(__file__).parent / "ofakd.npz", **arrays)
