"""The first two steps of configs whose recipe is one training task, and short runs of some others.

`python -m tests.system.two_steps [--only=SUBSTRING] [--write]` computes them and prints what
differs from `golden/two_steps.json`; `--write` records them, each with the processor. Numbers are
hexadecimal floats: on the processor that recorded them they are compared bit for bit. Those of
docstrings are recorded with the release of Python whose library's docstrings they are of. Other
recipes have reduced runs of their own in `tests/claims`.
"""

import argparse
import functools
import hashlib
import importlib
import json
import logging
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.cpu import cores

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "two_steps.json"
FLAGS = "--xla_backend_optimization_level=1"  # of the compiler that recorded them
os.environ.setdefault("XLA_FLAGS", FLAGS)  # read when JAX finds its devices
# Not data that a package carries.
ABSENT = (
    "cifar", "imagenet", "omniglot", "pods", "_npz", "million", "_fashion", "_icons", "_emoji",
    "_debian", "_wiki_vital", "_manuals",
)  # fmt: skip
# Their recipes give the task its starts; without them its gradients are zero.
STARTED = ("merging",)
# What a short run of an experiment reads of its config, for each file.
EPISODES = {
    "episodes.count": 64, "episodes.validation": 32, "episodes.imbalanced": True,
    "episodes.shots": (1,), "energy.episodes": 4, "features.of": "pixels",
    "compared": ("simple_shot", "soft_kmeans", "hard_kmeans", "k_modes", "laplacian_shot",
                 "transductive_clustering", "tim_adm", "alpha_tim", "bd_cspn", "label_propagation"),
}  # fmt: skip
# The methods that claims over splits of the classes compare.
SPLITS = {
    "splits": 2, "features.of": "pixels", "episodes.validation": 8, "episodes.judged": "one",
    "episodes.kinds": {
        "one": {"ways": 5, "shots": 1, "queries": 4, "count": 16, "imbalanced": True},
        "five": {"ways": 5, "shots": 5, "queries": 4, "count": 16, "imbalanced": False},
    },
    "compared": ("simple_shot", "shifted_simple_shot", "soft_kmeans", "transductive_clustering",
                 "tim", "alpha_tim", "pt_map"),
}  # fmt: skip
CLUSTERING = {"timing.sizes": (640, 1280), "timing.repetitions": 1, "cluster.max_iterations": 8}
SHORT: dict[str, dict[str, Any]] = {
    "configs/attention/random_features_small.py": {
        "heads": 40, "sizes": (50, 100), "test": 60, "replicates": 2, "scaling.replicates": 2,
        "limit.replicates": 2, "scaling.num_keys": (1, 3), "scaling.sizes.rfa": (2, 4, 8, 16, 32),
        "scaling.sizes.rf_mlp": (4, 8, 32, 128), "scaling.test": 60, "limit.heads": (16, 64),
    },
    "configs/attention/random_features.py": {
        "d": 4, "num_keys": 3, "heads": 8, "blocks": 2, "sizes": (32, 64), "test": 32,
        "replicates": 2, "scaling.d": 4, "scaling.num_keys": (1, 2), "scaling.sizes.rfa": (8, 64),
        "scaling.sizes.rf_mlp": (8, 128), "scaling.test": 32, "scaling.replicates": 2,
        "limit.d": 4, "limit.num_keys": 3, "limit.examples": 8, "limit.heads": (8, 16),
        "limit.replicates": 4,
        "targets": ("average_2", "weighted_1", "mixed_0_2", "mixed_1_2"),
    },
    "configs/fewshot/compare_digits.py": EPISODES,
    "configs/fewshot/compare_glyphs.py": SPLITS,
    "configs/fewshot/clustering_mnist5k.py": CLUSTERING,
    "configs/fewshot/clustering_mnist5k_graph.py": CLUSTERING,
    "configs/kernels/learning_friedman.py": {
        "data.sizes": (100, 300), "data.test": 100, "data.draws": 1, "train.steps": 2,
        "model.inducing": 20, "train.batch_size": 50,
    },
    "configs/kernels/regression_tables.py": {
        "data.splits": 2, "train.steps": 2, "model.inducing": 10, "model.widths": (1.0, 10.0),
        "optimizer.rates": (0.02,), "optimizer.nngp_rates": (0.01, 0.02),
    },
    "configs/kernels/width_diabetes.py": {
        "data.points": 4, "model.widths": (1.0, 1e6), "train.steps": 2, "sampler.copies": (2, 4),
        "sampler.chains": 2, "sampler.warmup": 10, "sampler.draws": 10,
    },
    "configs/hydra/subspace_mnist5k.py": {
        "train.steps": 2, "train.checkpoint_every": 0, "subspace.pairs": 2, "subspace.steps": 2,
        "subspace.images": 100,
    },
    "configs/hydra/compare_mnist5k.py": {
        "train.steps": 2, "train.checkpoint_every": 0,
        **{f"tries.{method}": ("",) for method in ("simclr", "supcon", "hydra", "classifier")},
    },
    "configs/hydra/hydra_digits.py": {
        "train.steps": 2, "train.eval_every": 0, "transfer.name": "digits",
    },
    "configs/contrastive/simclr_digits.py": {"train.steps": 2, "train.eval_every": 0},
    "configs/fewshot/base_digits.py": {
        "train.steps": 2, "train.eval_every": 0, "episodes.count": 64,
    },
    "configs/kernels/classification_digits.py": {
        "train.steps": 2, "model.inducing": 20, "train.log_every": 1, "model.widths": (10.0,),
        "tries.rates": (0.01,), "tries.sparse_gp_rates": (0.01,),
    },
    "configs/retrieval/finetune_pydocs.py": {
        "train.steps": 2, "train.checkpoint_every": 0, "data.train": "train[:2%]",
        "data.test": "test[:10%]", "data.validation": "validation[:10%]",
        "evaluation.test_queries": 50, "evaluation.validation_queries": 20,
    },
}  # fmt: skip
# Steps are those of the config itself, but for what takes long before the first of them.
FEWER = {
    "configs/retrieval/contriever_pydocs_random.py": {
        "data.train": "train[:5%]", "tokens.vocabulary": 1024, "evaluation.test_queries": 20,
    },
}  # fmt: skip
# Depend on the clock.
TIMED = ("seconds", "per_second", "cost_slope")
FETCHED = ("minilm_l3",)
"""Names of models whose weights are in an archive."""


def configs() -> list[str]:
    """Files of the configs that have numbers, of those whose data is here."""
    from experiments.registry import find_experiment

    found = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*/*.py"))
    here = [p for p in found if not p.endswith(("__init__.py", "parts.py"))]
    here = [p for p in here if not any(a in p for a in (*ABSENT, *STARTED))]

    def has_numbers(path: str) -> bool:
        config = read(path)
        return hasattr(find_experiment(config.experiment), "task") and trains(config)

    return [p for p in here if p in SHORT or has_numbers(p)]


def read(path: str) -> Any:
    """The config of a file."""
    return importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config()


def override(config: Any, values: dict[str, Any]) -> Any:
    """Sets dotted keys."""
    for key, value in values.items():
        *outer, last = key.split(".")
        inner = functools.reduce(lambda d, k: d[k], outer, config)
        with inner.ignore_type():
            inner[last] = value
    return config


def steps(path: str) -> dict[str, str]:
    """Metrics of the first two training steps; none where nothing is trained."""
    from experiments.registry import find_experiment
    from rml.training import CompiledTask, make_mesh
    from rml.training.task import as_numbers

    config = override(read(path), FEWER.get(path, {}))
    experiment = find_experiment(config.experiment)
    if not hasattr(experiment, "task") or not trains(config):
        return {}
    task = experiment.task(config)
    compiled = CompiledTask(task, make_mesh({"data": 1}, jax.devices()[:1]), seed=config.seed)
    state, batches, found = compiled.init(), iter(task.batches()), {}
    for step in (1, 2):
        batch = {k: v for k, v in next(batches).items() if k in task.batch_spec}
        state, metrics = compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
        found |= {f"step{step}/{k}": v.hex() for k, v in as_numbers(metrics).items()}
    return found


def trains(config: Any) -> bool:
    """Whether features are learned in the run itself, and not taken from elsewhere.

    A model that begins with the weights of an archive is not, since tests go without archives.
    """
    model = config.get("model", {})
    if isinstance(model, ConfigDict) and model.get("name") in FETCHED:
        return False
    return config.get("features", {}).get("of", "training") == "training"


def short_run(path: str) -> dict[str, str]:
    """Final metrics of a short run; none where `SHORT` lacks the file."""
    from experiments.registry import find_experiment
    from rml.training import RunDirectory

    if path not in SHORT:
        return {}
    config = override(read(path), SHORT[path])
    if "warmup_steps" in config.get("optimizer", {}):
        config.optimizer.warmup_steps = 1
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run", config.to_dict(), config_name=path)
        metrics = find_experiment(config.experiment).run(config, run)
        run.close()
    return {
        f"run/{k}": float(v).hex() for k, v in metrics.items() if not any(t in k for t in TIMED)
    }


def measure(path: str) -> dict[str, str]:
    """All numbers of a config."""
    return steps(path) | short_run(path)


def differences(expected: dict[str, str], found: dict[str, str], *, bits: bool = True) -> list[str]:
    """Names of numbers that are not equal, or not in both.

    With `bits` false, for another processor, which rounds otherwise, numbers are equal that differ
    by at most a five-hundredth and 1e-5.
    """

    def equal(name: str) -> bool:
        one, other = expected.get(name), found.get(name)
        if bits or one is None or other is None:
            return one == other
        return np.isclose(
            float.fromhex(one), float.fromhex(other), rtol=2e-3, atol=1e-5, equal_nan=True
        )

    return [name for name in sorted(expected.keys() | found.keys()) if not equal(name)]


def machine() -> str:
    """What the last bits of a number depend on: instructions, threads, compiler."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    digest = hashlib.sha256("".join(kind).encode()).hexdigest()[:12]
    return f"processor {digest}, {cores()} cores, jaxlib {jax.lib.__version__}"


def python(path: str) -> str:
    """The release of Python whose library a config reads docstrings of, or nothing."""
    return platform.python_version() if "pydocs" in path else ""


def main() -> None:
    """Compares or records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's path")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    golden = json.loads(GOLDEN.read_text())
    wrong = 0
    for path in configs():
        if options.only not in path:
            continue
        own = golden.get(path, {"machine": "", "numbers": {}, "python": python(path)})
        if own["python"] != python(path) and not options.write:
            print(f"{path}: not compared, recorded on docstrings of Python {own['python']}")
            continue
        found = measure(path)
        if options.write:
            golden[path] = {"machine": machine(), "numbers": found, "python": python(path)}
            GOLDEN.write_text(json.dumps(golden, indent=0, sort_keys=True) + "\n")
            print(f"{path}: {len(found)} numbers", flush=True)
            continue
        expected = own["numbers"]
        differing = differences(expected, found, bits=own["machine"] == machine())
        wrong += bool(differing)
        print(f"{path}: {len(found)} numbers, {len(differing)} differ", flush=True)
        for key in differing[:6]:
            print(f"  {key}: {expected.get(key)} recorded, {found.get(key)} now")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
