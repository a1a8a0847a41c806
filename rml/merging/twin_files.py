"""Twin-merged experts in a directory of safetensors: shared, exclusive and router, apart."""

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rml.errors import UserError
from rml.merging.tree_files import flat, nested, read_tensors, write_tensors
from rml.merging.twin import Own, Twin, twin_apply
from rml.models.router import Router, route
from rml.ops.trees import LowRank

SHARED, EXCLUSIVE, ROUTER = (f"{name}.safetensors" for name in ("shared", "exclusive", "router"))
PART = "a part of twin-merged experts"
BETWEEN = ":"
"""What stands between a leaf's dotted name and the name of a part of it."""


class Prediction(NamedTuple):
    """What twin-merged experts say of a batch.

    Attributes:
      outputs: What the module returns, of each input by its own parameters.
      weights: Weights of the experts [b, n].
    """

    outputs: Any
    weights: Array


class SavedTwin(NamedTuple):
    """What a directory holds.

        found = load_twin("runs/twin_merging/twin").predict(module, images)

    Attributes:
      twin: Shared expert and exclusive vectors.
      router: Variables of the router, None where there is none.
      names: Names of the experts, in the order of vectors and of the router's logits.
    """

    twin: Twin
    router: PyTree
    names: tuple[str, ...]

    def predict(self, module: nn.Module, *inputs: Any, top: int | None = None) -> Prediction:
        """Applies a module to a batch, with weights of experts that the router gives.

        The router reads what the module with the shared expert returns.

        Args:
          module: The module of the experts, whose outputs are features [b, d].
          *inputs: What it is called with, arrays with a leading axis of the batch.
          top: Number of experts that each input is given; all if not given.

        Raises:
          UserError: There is no router.
        """
        if self.router is None:
            raise UserError("router is None, expected variables of one that `save_twin` was given")
        return _predicted(module, self.twin, self.router, inputs, top=top)


def save_twin(
    directory: str | Path, twin: Twin, *, router: PyTree = None, names: Sequence[str] = ()
) -> None:
    """Writes experts in parts, and their router, into a new directory.

    The vectors of all experts lie in one file, in the order of the router's logits.

    Args:
      directory: Directory to make.
      twin: Experts in parts as `rml.merging.modularise` returns them.
      router: Variables of a router, nested dictionaries.
      names: Names of the experts, in their order.

    Raises:
      UserError: The directory exists, or there is not one name for each expert. Nothing is written
        then.
    """
    path = Path(directory)
    if path.exists():
        raise UserError(f"{path} exists, expected a new directory")
    tensors: dict[str, Any] = {}
    for name, part in flat(twin.exclusive).items():
        if isinstance(part, LowRank | Own):
            tensors |= {f"{name}{BETWEEN}{key}": x for key, x in part._asdict().items()}
        else:
            tensors[name] = part
    count = next(iter(tensors.values())).shape[0]
    if names and len(names) != count:
        raise UserError(f"names are {list(names)}, expected {count}: one for each expert")
    files = {SHARED: flat(twin.shared), EXCLUSIVE: tensors}
    if router is not None:
        files[ROUTER] = flat(router)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a save that was stopped
    partial.mkdir(parents=True)
    for file, own in files.items():
        write_tensors(partial / file, own, {"experts": json.dumps(list(names))})
    partial.rename(path)


def load_twin(directory: str | Path) -> SavedTwin:
    """Reads what `save_twin` wrote.

    Raises:
      UserError: The directory lacks a file of the shared expert or of vectors, or one is damaged.
    """
    path = Path(directory)
    shared, _ = read_tensors(path / SHARED, PART)
    tensors, notes = read_tensors(path / EXCLUSIVE, PART)
    parts: dict[str, dict[str, Any]] = {}
    for name, x in tensors.items():
        leaf, _, key = name.partition(BETWEEN)
        parts.setdefault(leaf, {})[key] = jnp.asarray(x)
    exclusive = {
        name: own[""] if "" in own else LowRank(**own) if "left" in own else Own(**own)
        for name, own in parts.items()
    }
    router = nested(read_tensors(path / ROUTER, PART)[0]) if (path / ROUTER).exists() else None
    names = tuple(json.loads(notes.get("experts", "[]")))
    return SavedTwin(Twin(nested(shared), nested(exclusive)), router, names)


@functools.partial(jax.jit, static_argnames=("module", "top"))
def _predicted(
    module: nn.Module, twin: Twin, variables: PyTree, inputs: Any, *, top: int | None
) -> Prediction:
    params = variables["params"]
    layers = [own["kernel"] for name, own in params.items() if name.startswith("dense")]
    router = Router(
        experts=params["out"]["kernel"].shape[-1], layers=len(layers),
        hidden=layers[0].shape[-1] if layers else None,
    )  # fmt: skip
    features: Any = module.apply({"params": twin.shared}, *inputs)
    logits: Any = router.apply(variables, features)
    weights = route(logits, top=top)
    return Prediction(twin_apply(module, *twin, weights, *inputs), weights)
