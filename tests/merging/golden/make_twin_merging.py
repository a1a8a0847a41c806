"""Writes twin_merging.npz with the authors' functions.

    python tests/merging/golden/make_twin_merging.py path/to/Twin-Merging/discriminative

The path is in a clone of LZY-the-boys/Twin-Merging at f481c60. It needs torch and transformers.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
# For data and tables they import what no function here uses.
unused = ("datasets", "pandas", "tabulate", "telnetlib")
with mock.patch.dict(sys.modules, dict.fromkeys(unused, mock.MagicMock())):
    from merge import MergingMethod
    from param import kw_filter_func, param
    from twin_merge import extract_twin_vector

SHAPES = {
    "first.bias": (5,), "first.kernel": (6, 5), "norm.scale": (6,), "second.kernel": (4, 7),
}  # fmt: skip
SHARED = {
    "arithmetic": ("task_arithmetic", {"scaling": 0.4}),
    "ties": ("ties_merge", {"scaling": 0.7, "mask_rate": 0.7}),
}

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=own) for name, own in SHAPES.items()}
    experts = {name: own + rng.normal(0, 0.2, (3, *own.shape)) for name, own in base.items()}
    router = rng.normal(size=3)
    trees = [base, *({name: own[i] for name, own in experts.items()} for i in range(3))]
    start, *models = [param({name: torch.tensor(x) for name, x in own.items()}) for own in trees]
    for own in (start, *models):
        own.filter(lambda name, x: kw_filter_func(name, x, [".*bias.*"]))
    merger = MergingMethod(models_to_merge=models, models_name=["a", "b", "c"])
    found = {"router": router}
    found |= {f"base/{name}": own for name, own in base.items()}
    found |= {f"experts/{name}": own for name, own in experts.items()}
    for kind, (method, options) in SHARED.items():
        shared = getattr(merger, method)(base_model=start, models_to_merge=models, **options)
        found |= {f"{kind}/shared/{name}": own for name, own in shared.items()}
        for strategy, rate in (("svd", 0.5), ("svd", 0.25), ("magnitude", 0.6)):
            vectors = [extract_twin_vector(own, shared, rate, strategy) for own in models]
            weights = torch.softmax(torch.tensor(router), 0)
            whole = shared + sum(w * own for w, own in zip(weights, vectors, strict=True))
            found |= {f"{kind}/{strategy}/{rate}/{name}": own for name, own in whole.items()}
    np.savez_compressed(Path(__file__).with_name("twin_merging.npz"), **found)
