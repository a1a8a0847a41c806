"""Writes `atlas.npz` anew: python tests/merging/golden/make_atlas.py CLONE.

CLONE is a checkout of github.com/fredzzhang/atlas at 557d7fb. It needs torch. A small network
stands for the image encoder: tanh(x W1ᵀ + b1) W2ᵀ + b2, in float64.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
from src.composition import WeightedImageEncoder, WeightedLinearizedModel
from torch.func import functional_call as called

BLOCKS = {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}
COUNT, PARTS = 3, 2  # task vectors, parts of a block


def values(model: torch.nn.Module, coefficients: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Outputs, and derivatives by the coefficients of the sum of their squares."""
    model = model.double()
    with torch.no_grad():
        model.coef.copy_(torch.tensor(coefficients))
    out = model(torch.tensor(x))
    (slopes,) = torch.autograd.grad(out.square().sum(), model.coef)
    return [out.detach().numpy(), slopes.numpy()]


if __name__ == "__main__":
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    kept = {f"base/{k}": rng.normal(size=shape) for k, shape in BLOCKS.items()}
    kept |= {f"vectors/{k}": rng.normal(size=(COUNT, *shape)) for k, shape in BLOCKS.items()}
    kept |= {"x": rng.normal(size=(6, 4)), "blockwise": rng.normal(size=(COUNT, len(BLOCKS)))}
    kept |= {"isotropic": rng.normal(size=COUNT), "parted": rng.normal(size=(COUNT, 4, PARTS))}
    made = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    made = made.double()
    made.load_state_dict({k: torch.tensor(kept[f"base/{k}"]) for k in BLOCKS})
    made.train_preprocess = made.val_preprocess = made.cache_dir = None
    vectors = [SimpleNamespace(vector={f"model.params.{k}": torch.tensor(kept[f"vectors/{k}"][i])
                                       for k in BLOCKS}) for i in range(COUNT)]  # fmt: skip
    linear = SimpleNamespace(
        params0=list(made.parameters()), buffers0=[], _model_name="small",
        func0=lambda p, _, x: called(made, dict(zip(BLOCKS, p, strict=True)), x),
    )  # fmt: skip
    for name, own in {"blockwise": {}, "isotropic": {"blockwise": False},
                      "parted": {"partition": PARTS}}.items():  # fmt: skip
        models = {name: WeightedImageEncoder(made, vectors, **own)}
        if name == "parted":
            masks = {k: models[name].mask_mats[shape].argmax(0) for k, shape in BLOCKS.items()}
            kept |= {f"parts/{k}": mask.numpy() for k, mask in masks.items()}
        else:
            models[f"linearised_{name}"] = WeightedLinearizedModel(linear, vectors, **own)
        for case, model in models.items():
            kept[f"{case}/out"], kept[f"{case}/slopes"] = values(model, kept[name], kept["x"])
    np.savez_compressed(Path(__file__).parent / "atlas.npz", **kept)
