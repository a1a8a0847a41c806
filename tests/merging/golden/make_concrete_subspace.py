"""Writes concrete_subspace.npz with the authors' functions.

    python tests/merging/golden/make_concrete_subspace.py path/to/subspace_fusion

The path is a clone of tanganke/subspace_fusion at 67f8450. It needs torch.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
# For models of their own they import what no function here uses.
unused = ("open_clip", "open_clip.model")
with mock.patch.dict(sys.modules, dict.fromkeys(unused, mock.MagicMock())):
    from src.concrete_mask import ConcreteMask
    from src.ties_merging_utils import ties_merging

SHAPES, RNG = {"w": (3, 5), "layer0": (4, 3), "layer1": (4, 3)}, np.random.default_rng(0)


def drawn(*lead: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(RNG.normal(0, size, (*lead, *own))) for name, own in SHAPES.items()}


def masks(temperature: float, found: dict[str, np.ndarray]) -> None:
    logits, vectors, slopes = drawn(size=2.0), drawn(2), drawn(2)
    uniforms = {name: torch.tensor(RNG.uniform(size=own)) for name, own in SHAPES.items()}
    rows = [{name: own[i] for name, own in vectors.items()} for i in range(2)]
    mask = ConcreteMask(temperature, rows[0])
    for name, own in logits.items():
        mask.masks[name] = own.requires_grad_()
    with mock.patch("torch.rand", side_effect=list(uniforms.values())):
        sample = mask._draw_mask()
    masked = mask.apply_mask(rows, sample)
    sum((masked[i][name] * slopes[name][i]).sum() for i in range(2) for name in SHAPES).backward()
    mask.draw_sample = False
    for name in SHAPES:
        found |= {
            f"{key}_{name}_{temperature}": own.detach().numpy()
            for key, own in {
                "logits": logits[name], "vectors": vectors[name], "slopes": slopes[name],
                "uniforms": uniforms[name], "mask": sample[name], "grad": logits[name].grad,
                "masked": torch.stack([own[name] for own in masked]),
                "expected": mask._draw_mask()[name],
            }.items()
        }  # fmt: skip


if __name__ == "__main__":
    found = {"flat": RNG.normal(size=(4, 60))}
    for temperature in (0.5, 1.3):
        masks(temperature, found)
    flat = torch.tensor(found["flat"])
    found |= {f"ties_{share}": ties_merging(flat, share, "dis-mean") for share in (20, 0.35, 0.8)}
    np.savez_compressed(Path(__file__).with_name("concrete_subspace.npz"), **found)
