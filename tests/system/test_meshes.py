"""Every experiment's training step on meshes of eight devices equals its step on one.

Parameters and moments lie split where the mesh says so, none that is split over the model axis is
ever gathered, no image leaves the device that read it, and over a split batch no device holds the
similarities of all of it with all of it.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# Devices that split the batch by those that split the model: 8 x 1, 4 x 2, 2 x 4, 1 x 8.
MESHES = (
    {"data": 8},
    {"data": 2, "fsdp": 2, "model": 2},
    {"fsdp": 2, "data": 1, "model": 4},
    {"data": 1, "model": 8},
)
# All of them for the transformer, whose every axis is split; the mixed one for some others. With
# RML_ALL_MESHES=1 every experiment on all of them, which takes minutes.
MIXED = MESHES[1:2]
ALL = bool(os.environ.get("RML_ALL_MESHES"))
BATCH = 72  # a size that no other axis has, nor twice of it
VIT = {"name": "vit_ti", "patch_size": 4, "depth": 2, "width": 64, "heads": 8}
CONTRIEVER = "configs.retrieval.contriever_pydocs_random"
TEXT = {"model.width": 64, "model.heads": 8, "model.mlp": 128, "tokens.vocabulary": 512}
EXPERIMENTS = {
    "simclr, ViT": ("configs.contrastive.simclr_digits", {"model": VIT}),
    "moco_v2": ("configs.contrastive.moco_v2_mnist5k", {}),
    # Groups of normalisation that the batch's devices do not divide.
    "moco_v2, 6 groups": ("configs.contrastive.moco_v2_mnist5k", {"batch_norm.groups": 6}),
    # Ten classes cannot be split over eight devices.
    "hydra": ("configs.hydra.hydra_digits", {"data.classes": 16}),
}
if ALL:
    EXPERIMENTS |= {
        "simclr": ("configs.contrastive.simclr_digits", {}),
        "moco_v3, ViT": ("configs.contrastive.moco_v3_mnist5k", {"model": VIT}),
        "supcon": ("configs.contrastive.supcon_mnist5k", {}),
        "base_training": ("configs.fewshot.base_digits", {"classes.base": 8}),
        "distill": ("configs.distillation.distill_fashion", {"classes": 24}),
        # At 0.05 the queue's random keys leave a fresh encoder a loss that is all rounding.
        "contriever": (CONTRIEVER, TEXT | {"loss.temperature": 1.0}),
        "contriever, in batch": (CONTRIEVER, TEXT | {"loss.negatives": "batch"}),
        "sparse DKM": ("configs.kernels.classification_digits", {}),
    }
CHILD = """
import functools, importlib, json, re, sys
import jax, numpy as np
from experiments.registry import find_experiment
from rml.training import CompiledTask, make_mesh
from tpu import hlo
from tpu.collectives import collectives

name, overrides, meshes, rows = json.loads(sys.argv[1])
config = importlib.import_module(name).get_config()
config.data.update(image_shape=(12, 12, 1))
config.train.batch_size = rows
for key, value in overrides.items():
    *path, last = key.split(".")
    inner = functools.reduce(lambda d, k: d[k], path, config)
    with inner.ignore_type():
        inner[last] = value
task = find_experiment(config.experiment).task(config)
rng = np.random.default_rng(0)
highest = {"image": 256, "tokens": 512, "length": 97}
batch = {
    key: rng.integers(0, highest.get(key, 5), spec.shape).astype(spec.dtype)
    for key, spec in task.batch_spec.items()
}
result = []
for shape in ({"data": 1}, *meshes):
    devices = jax.devices()[:1] if shape == {"data": 1} else jax.devices()
    compiled = CompiledTask(task, make_mesh(shape, devices))
    state = compiled.init()
    split = sum(
        leaf.addressable_shards[0].data.size < leaf.size for leaf in jax.tree.leaves(state.params)
    )
    moments = sum(
        leaf.addressable_shards[0].data.size < leaf.size
        for leaf in jax.tree.leaves(state.opt_state)
    )
    metrics = []
    for _ in range(2):
        state, found = compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
        metrics.append({key: float(value) for key, value in found.items()})
    whole = {str(n * rows) for n in (1, 2)}
    text = compiled.step.as_text()
    arrays = set(re.findall(r"f32\\[([0-9,]+)\\]", text))
    square = sorted(dims for dims in arrays if sum(n in whole for n in dims.split(",")) > 1)
    over_model = {
        leaf.nbytes for leaf in jax.tree.leaves(state.params)
        if "model" in leaf.sharding.spec and leaf.addressable_shards[0].data.size < leaf.size
    }
    exchanges = collectives(hlo.parse(text))
    # Images of a device, by their number of pixels; sums over devices are of other things.
    pixels = rows // jax.device_count() * 12 * 12 * 4
    images = {
        found.shape for found in exchanges
        if found.kind != "all-reduce" and found.bytes % pixels == 0
    }
    gathered = {
        found.bytes * found.groups.shape[1] for found in exchanges
        if found.kind == "all-gather"
        and len(set(found.groups[0] % compiled.shardings.step.mesh.shape["model"])) > 1
    }
    result.append(dict(metrics=metrics, split=split, moments=moments, square=square,
                       over_model=len(over_model), gathered=sorted(over_model & gathered),
                       images=sorted(images)))
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_step_on_eight_devices_equals_that_on_one(forked, experiment):
    name, overrides = EXPERIMENTS[experiment]
    meshes = MESHES if ALL or experiment == "simclr, ViT" else MIXED
    one, *several = forked(CHILD, json.dumps([name, overrides, meshes, BATCH]), devices=8)
    assert one["split"] == 0
    for mesh, other in zip(meshes, several, strict=True):
        worst = 0.0
        for a, b in zip(one["metrics"], other["metrics"], strict=True):
            for key in a:  # float32: sums in another order
                np.testing.assert_allclose(b[key], a[key], rtol=1e-4, err_msg=f"{mesh} {key}")
                worst = max(worst, abs(b[key] - a[key]) / abs(a[key] or 1.0))
        print(f"{experiment}, {mesh}: largest relative difference {worst:.1e}")
        parameters = mesh.get("fsdp", 1) * mesh.get("model", 1) > 1
        # A machine's matrices are factorised: each device holds them whole.
        assert (other["split"] > 0) == (parameters and experiment != "sparse DKM"), mesh
        # Two moments a parameter, one where the optimiser is SGD with momentum.
        assert other["moments"] in (other["split"], 2 * other["split"]), mesh
        # Splitting over fsdp is for memory: those are gathered where they are used. What lies split
        # over model is computed with as it lies, but for kernels of convolutions of a whole batch.
        if "ViT" in experiment or mesh.get("model") != 8:
            assert other["gathered"] == [], mesh
        # On a CPU the kernel gradient of a convolution gathers its input, but not of patches. Where
        # the batch is not split, every device reads all images.
        if "ViT" in experiment and mesh.get("model") != 8:
            assert other["images"] == [], mesh
        if experiment == "simclr, ViT":
            assert (other["over_model"] > 0) == (mesh.get("model", 1) > 1)
        if not mesh.get("model"):  # the batch is split over all devices
            assert other["square"] == [], mesh
