"""The weights of a transformer at another size, by the maps of multilevel training.

python -m experiments.resize RUN --width=2 --depth=2 --out=small.safetensors
python -m experiments.resize small.safetensors --width=2 --larger --out=large.safetensors

What is resized is the one transformer (`ViT`, `Bert` or `Llama`) in a run directory, in published
weights such as weights:minilm, or in a file that `python -m experiments.export` or this command
wrote. Smaller, a unit is the mean of its group; larger, units and layers are copies. A larger width
alone gives the same features; more layers do not.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from experiments.cpu import convolve_on_all_cores
from experiments.embed import check_out, plain_parser, run_command, write_whole
from experiments.interrupts import leave
from experiments.startup import keep_compiled, quiet_libraries
from rml.errors import UserError, local_path


def main(argv: Sequence[str]) -> int:
    """Resizes the transformer that a command names and writes its weights.

    Args:
      argv: Arguments of the program, without its name.

    Returns:
      The exit status.
    """
    parser = plain_parser("resize", __doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="run directory, weights:NAME or file")
    parser.add_argument("--width", type=int, default=1, help="units that are one, or copies of one")
    parser.add_argument("--depth", type=int, default=1, help="layers likewise")
    parser.add_argument("--larger", action="store_true", help="make it larger, not smaller")
    parser.add_argument("--scheme", default="halves", help="of units: halves or neighbours")
    parser.add_argument("--layer-scheme", default="halves", help="of layers likewise")
    return run_command(parser, argv, resized)


def resized(options: argparse.Namespace) -> str:
    """Resizes and writes; what was done in one line."""
    check_out(options.out)
    if min(options.width, options.depth) < 1 or options.width == options.depth == 1:
        raise UserError(
            f"--width is {options.width} and --depth {options.depth}, expected ratios of at least "
            "1, one of them above it"
        )
    import numpy as np
    from flax.traverse_util import flatten_dict, unflatten_dict

    from rml.models.layouts import transformer_sizes
    from rml.models.pretrained.extra import require
    from rml.training.multilevel import coalesce, decoalesce, groups_of

    params = unflatten_dict(read_weights(options.weights), sep=".")
    before = transformer_sizes(params)
    large = before
    if options.larger:
        large = before.times(width=options.width, depth=options.depth)
    groups = groups_of(
        large, width=options.width, depth=options.depth, scheme=options.scheme,
        layer_scheme=options.layer_scheme,
    )  # fmt: skip
    found = (decoalesce if options.larger else coalesce)(params, groups)
    after = transformer_sizes(found)
    flat = {name: np.ascontiguousarray(x) for name, x in flatten_dict(found, sep=".").items()}
    content = require("safetensors.numpy").save(flat, {"format": "flax"})
    write_whole(options.out, lambda file: file.write(content))
    changes = ", ".join(
        f"{name} {old} to {new}"
        for name, old, new in zip(before._fields, before, after, strict=True) if old != new
    )  # fmt: skip
    return f"{options.out}: {changes}; {sum(x.size for x in flat.values())} numbers"


def read_weights(name: str) -> dict[str, Any]:
    """Arrays by dotted names: those of a file, or those that the features of an encoder depend on.

    Raises:
      UserError: There is no such file, run or weights.
    """
    from rml.models.pretrained.files import read_safetensors

    if name.endswith(".safetensors"):
        file = local_path(name, "WEIGHTS")
        return {key: tensor.read() for key, tensor in read_safetensors(file).items()}
    import rml
    from experiments.export import used_weights

    return used_weights(rml.load(name))


if __name__ == "__main__":
    convolve_on_all_cores()
    keep_compiled()
    quiet_libraries()
    leave(main(sys.argv[1:]))
