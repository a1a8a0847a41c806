"""Recipes judge a state where it lies on two processes' devices, as one process judges it whole."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from tests.system.forks import Fork, free_address, last_lists

MESH = {"data": 1, "fsdp": 2, "model": 2}
CHANGES = {
    "train.steps": 2, "train.eval_every": 0, "train.checkpoint_every": 0,
    # Adam would make steps of full size out of the rounding of gradients that are zero.
    "optimizer.learning_rate": 1e-6, "optimizer.warmup_steps": 1,
    "train.batch_size": 32, "evaluation.batch_size": 256,
    "features.batch_size": 256, "episodes.count": 20, "episodes.ways": (3,),
    # Ten classes and five cannot be split over four devices; digits are at hand.
    "transfer.name": "digits", "data.train": "train[:300]", "data.test": "test[:100]",
    "data.name": "digits",
}  # fmt: skip
RECIPES = ("configs/hydra/hydra_digits.py", "configs/fewshot/base_digits.py")
RUN = """
import functools, json, sys
from pathlib import Path
import jax
file, directory, mesh, changes, *processes = sys.argv[1:]
from rml.training.processes import barrier, join, split_cpu
jax.config.update("jax_platforms", "cpu")
split_cpu(2 if processes else 1)
if processes:
    address, count, index = processes
    join(address, int(count), int(index))
from experiments.registry import find_experiment
from rml import evaluation
from rml.encoder import ImageEmbedder
from rml.training import RunDirectory
from tests.system.two_steps import read

config = read(file)
config.mesh = json.loads(mesh)
for key, value in json.loads(changes).items():
    *path, last = key.split(".")
    inner = functools.reduce(lambda found, name: found.get(name, {}), path, config)
    if last in inner:
        inner[last] = tuple(value) if isinstance(value, list) else value
evaluation.embed_2d = lambda x, method: x[:, :2]  # a figure's

shares, embed = [], ImageEmbedder.__call__

def judged(self, images, **options):
    # The largest share of the arrays that one of this process's devices holds.
    leaves = jax.tree.leaves(self.variables)
    held = {}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    shares.append(max(held.values()) / sum(leaf.nbytes for leaf in leaves))
    return embed(self, images, **options)

ImageEmbedder.__call__ = judged
run = RunDirectory(directory, config.to_dict())
metrics = find_experiment(config.experiment).run(config, run)
print(json.dumps([{name: float(value) for name, value in metrics.items()}, shares]))
if processes:
    barrier("end")
run.close()
"""


def judge(fork: Callable[..., Fork], file: str, directory, mesh: dict, count: int = 1) -> list:
    """Runs a recipe by that many processes; its metrics and shares in each of them."""
    address = free_address()
    given = [file, str(directory), json.dumps(mesh), json.dumps(CHANGES)]
    processes = [
        fork("-c", RUN, *given, *([address, str(count), str(i)] if count > 1 else []))
        for i in range(count)
    ]
    return last_lists(processes)


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES)
def test_no_device_holds_the_whole_state_that_a_recipe_judges(fork, tmp_path, file):
    ((alone, whole),) = judge(fork, file, tmp_path / "alone", {})
    (metrics, shares), (other, _) = judge(fork, file, tmp_path / "split", MESH, 2)
    assert whole == [1.0] * len(shares)  # trained and untrained, of every part of the data
    assert max(shares) < 0.6, shares
    assert metrics == other
    assert metrics.keys() == alone.keys()
    for name, value in alone.items():  # of a few hundred images: a rounding may turn one or two
        np.testing.assert_allclose(metrics[name], value, rtol=2e-2, atol=2e-2, err_msg=name)
