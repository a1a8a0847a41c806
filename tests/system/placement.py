"""Bytes of its training state on a device, for configs with a mesh whose recipe has a `task`.

`python -m tests.system.placement [--write]` computes them by shapes alone and prints what differs
from `golden/placement.json`; `--write` records them. Two models that no config trains stand for
axes that none has.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from experiments.registry import ROOT, config_files, find_experiment, read_config
from rml.models import Llama, ViT
from rml.training.mesh import DEFAULT_RULES, MESH_AXES, device_bytes, of_activations, place
from tests.system.two_steps import trains

GOLDEN = Path(__file__).parent / "golden" / "placement.json"
MESHES = {"whole": (1, 1), "fsdp=4": (4, 1), "model=4": (1, 4), "fsdp=2, model=4": (2, 4)}
TEXT, IMAGE = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 224, 224, 3))
MODELS = {
    "LLaMA of 1.5 billion parameters, 2 heads of keys": (
        Llama(vocabulary=151_936, width=1536, depth=28, heads=12, kv_heads=2, mlp=8960), TEXT,
    ),
    "LLaMA of 1.2 billion parameters, 8 heads of keys": (
        Llama(vocabulary=128_256, width=2048, depth=16, heads=32, kv_heads=8, mlp=8192), TEXT,
    ),
    "ViT-B/32 with a projection": (
        ViT(width=768, depth=12, heads=12, patch_size=32, projection=512), IMAGE,
    ),
}  # fmt: skip


def names() -> Iterator[str]:
    """Config files whose runs train on a mesh, and models."""
    for path in config_files():
        config = read_config(str(ROOT / path))
        if "mesh" not in config or not trains(config):
            continue
        if hasattr(find_experiment(config.experiment), "task"):
            yield path
    yield from MODELS


@cache
def state(name: str) -> Any:
    """Shapes of a training state, boxed by logical axes."""
    key = jax.random.key(0)
    if name in MODELS:
        model, example = MODELS[name]
        return jax.eval_shape(partial(model.init, key), example)
    config = read_config(str(ROOT / name))
    return jax.eval_shape(find_experiment(config.experiment).task(config).init, key)


def measure(name: str, rules: Any = DEFAULT_RULES) -> dict[str, int]:
    """Bytes that a device holds, by mesh."""
    found = {}
    for words, sizes in MESHES.items():
        shardings, _ = place(state(name), AbstractMesh((1, 1, *sizes), MESH_AXES), rules)
        found[words] = device_bytes(nn.meta.unbox(state(name)), shardings)
    return found


def activations(rules: Any = DEFAULT_RULES) -> dict[str, str]:
    """Mesh axes of the last axis of activations, by its logical name."""
    with nn.logical_axis_rules(of_activations(rules)):
        return {
            name: str(nn.logical_to_mesh_axes(("batch", name)))
            for name in sorted({name for name, _ in DEFAULT_RULES} - {"batch"})
        }


def main() -> None:
    """Compares or records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = {"activations": activations()} | {name: measure(name) for name in names()}
    if options.write:
        GOLDEN.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name in sorted(golden.keys() | found.keys()):
        if golden.get(name) != found.get(name):
            print(f"{name}:\n  {golden.get(name)} recorded\n  {found.get(name)} now")
    raise SystemExit(golden != found)


if __name__ == "__main__":
    main()
