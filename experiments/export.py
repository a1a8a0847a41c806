"""A trained encoder for use elsewhere: weights, a program, or features.

python -m experiments.export RUN --format=safetensors --out=encoder.safetensors
python -m experiments.export RUN --format=stablehlo --out=encoder.stablehlo
python -m experiments.export RUN --format=npz --data=digits --split=test --out=features.npz
python -m experiments.export weights:minilm_l3 --format=stablehlo --out=minilm.stablehlo

Beside the weights and the program lies a card, OUT.json: config, provenance, preprocessing, paper,
and how the file is used. The program has the weights in it and runs on CPUs, GPUs and TPUs, by JAX
and flatbuffers alone.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import Any

from experiments.embed import (
    SPLIT,
    check_absent,
    make_parser,
    run_tool,
    write_features,
    write_whole,
)
from experiments.interrupts import leave
from experiments.startup import keep_compiled, quiet_libraries
from experiments.systems import read_systems
from rml.errors import UserError, install

PLATFORMS = ("cpu", "cuda", "tpu")
PACKAGES = {"safetensors": "safetensors", "stablehlo": "flatbuffers"}
"""Packages by the formats that need one; beside the files of these lies a card."""

RUN_IMAGES = """\
import numpy as np
from jax import export
program = export.deserialize(bytearray(open({file!r}, "rb").read()))
images = np.zeros({shape}, np.{dtype})
features = np.asarray(program.call(images))
"""
RUN_TEXTS = """\
import numpy as np, tokenizers
from jax import export
program = export.deserialize(bytearray(open({file!r}, "rb").read()))
tokenizer = tokenizers.Tokenizer.from_file({tokenizer!r})
tokenizer.encode_special_tokens = True  # their names in a text are text
tokenizer.enable_truncation({max_length}), tokenizer.enable_padding()
read = tokenizer.encode_batch(["a text", "another, longer text"])
tokens = np.array([one.ids for one in read], np.int32)
features = np.asarray(program.call(tokens, np.array([one.attention_mask for one in read], bool)))
"""
READ_WEIGHTS = """\
from safetensors.numpy import load_file
weights = load_file({file!r})
"""


def main(argv: Sequence[str]) -> int:
    """Exports the encoder of a run and says what was written.

    Args:
      argv: Arguments of the program, without its name.

    Returns:
      The exit status.
    """
    parser = make_parser("export", __doc__)
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help="what to write")
    parser.add_argument("--data", metavar="NAME", help="data set, of npz; that of the run if unset")
    parser.set_defaults(split=None)

    def check(options: argparse.Namespace) -> None:
        check_unread(options)
        check_export(options)

    return run_tool(
        parser, argv, lambda encoder, options: FORMATS[options.format](encoder, options),
        check=check,
    )  # fmt: skip


def check_export(options: argparse.Namespace) -> None:
    """Refuses, before any work, a format without its package, and a card that is there already."""
    if options.format in PACKAGES:
        check_absent(card_path(options.out))
        if importlib.util.find_spec(PACKAGES[options.format]) is None:
            raise _missing(PACKAGES[options.format])


def check_unread(options: argparse.Namespace) -> None:
    """Refuses data, or a split of it, for a format that reads none."""
    for name in ("data", "split") if options.format in PACKAGES else ():
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name} is {getattr(options, name)!r}, and --format={options.format} reads no "
                "data; expected it with --format=npz"
            )


def check_beside(encoder: Any, options: argparse.Namespace) -> None:
    """Raises `UserError` where a file exists that would lie beside that of an encoder."""
    if options.format in PACKAGES:
        check_absent(*_beside(encoder, options.out))


def export_features(encoder: Any, options: argparse.Namespace) -> str:
    """Writes the features of a data set, as `experiments.embed` does."""
    options.data = options.data or encoder.config["data"].get("name")
    options.split = options.split or SPLIT
    return write_features(encoder, options)


def export_weights(encoder: Any, options: argparse.Namespace) -> str:
    """Writes the weights that the features depend on, with a card."""
    try:
        from safetensors.flax import save
    except ImportError:
        raise _missing("safetensors") from None
    check_beside(encoder, options)
    weights = used_weights(encoder)
    card = make_card(encoder, options.out, READ_WEIGHTS) | {
        "tensors": {name: [str(one.dtype), list(one.shape)] for name, one in weights.items()}
    }
    _write(encoder, options.out, save(weights, {"format": "flax"}), card)
    numbers = sum(one.size for one in weights.values())
    return f"{options.out}: {len(weights)} arrays of {numbers} numbers; {card_path(options.out)}"


def export_program(encoder: Any, options: argparse.Namespace) -> str:
    """Writes a StableHLO program from arrays to features, with a card."""
    try:
        import flatbuffers  # noqa: F401 - JAX writes and reads programs with it
    except ImportError:
        raise _missing("flatbuffers") from None
    check_beside(encoder, options)
    content = make_program(encoder)
    template = RUN_IMAGES if encoder.kind == "images" else RUN_TEXTS
    card = make_card(encoder, options.out, template) | {"platforms": list(PLATFORMS)}
    _write(encoder, options.out, content, card)
    return f"{options.out}: {len(content)} bytes; {card_path(options.out)} says how to run it"


FORMATS: dict[str, Callable[[Any, argparse.Namespace], str]] = {
    "npz": export_features, "safetensors": export_weights, "stablehlo": export_program,
}  # fmt: skip


def used_weights(encoder: Any) -> dict[str, Any]:
    """The variables that the features depend on, by their path: not those of a head."""
    import jax
    from jax import export

    program = export.export(jax.jit(encoder.function))(
        encoder.variables, *encoder.abstract_inputs(2, 8)
    )
    kept = set(program.module_kept_var_idx)
    leaves = jax.tree.leaves_with_path(encoder.variables)
    named = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    return {name: leaf for at, (name, leaf) in enumerate(named.items()) if at in kept}


def make_program(encoder: Any) -> bytes:
    """Serialises the function with its variables, for any number of rows."""
    import jax
    import jax.numpy as jnp
    from jax import export
    from jax.errors import InconclusiveDimensionOperation

    variables = jax.device_get(encoder.variables)
    rows: Any
    if encoder.kind == "texts":
        most = [f"length <= {encoder.embedder.max_length}"]
        rows, length = export.symbolic_shape("rows, length", constraints=most)
    else:
        (rows,), length = export.symbolic_shape("rows"), None

    def features(*inputs: Any) -> Any:
        return encoder.function(variables, *inputs).astype(jnp.float32)

    try:
        program = export.export(jax.jit(features), platforms=PLATFORMS)(
            *encoder.abstract_inputs(rows, length)
        )
    except (NotImplementedError, ValueError, InconclusiveDimensionOperation) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the encoder of {encoder.run} has no program for {', '.join(PLATFORMS)}: {reason}"
        ) from error
    return bytes(program.serialize())


def make_card(encoder: Any, out: Path, how: str) -> dict[str, Any]:
    """What must be known to use a file of an encoder.

    Args:
      encoder: An `rml.Encoder`.
      out: The file.
      how: Template of the lines of Python that use it.

    Returns:
      The card.
    """
    from rml.training.config_file import read_summary

    summary = read_summary(Path(encoder.run)) or {}
    experiment = encoder.config.get("experiment", "")  # published weights have none
    provenance = ("config_name", "seed", "finished", "versions", "devices", "commit")
    return {
        "kind": encoder.kind,
        "width": encoder.width,
        "inputs": inputs_of(encoder, out),
        "outputs": f"float32 [n, {encoder.width}], a row an input in its order",
        "how_to_use": how.format(file=out.name, **arguments(encoder, out)).splitlines(),
        "experiment": experiment,
        "step": encoder.step,
        "run": str(encoder.run),
        "provenance": {key: summary[key] for key in provenance if key in summary},
        "paper": citation(experiment, summary.get("config_name", "")),
        "config": dict(encoder.config),
    }


def arguments(encoder: Any, out: Path) -> dict[str, Any]:
    """What the lines that use a file say of its encoder."""
    if encoder.kind == "texts":
        return {"tokenizer": tokenizer_path(out).name, "max_length": encoder.embedder.max_length}
    data = encoder.config["data"]
    return {"shape": (4, *encoder.input_shape), "dtype": data["image_dtype"]}


def inputs_of(encoder: Any, out: Path) -> dict[str, Any]:
    """The preprocessing of a run in words and numbers."""
    if encoder.kind == "texts":
        return {
            "tokens": "int32 [n, t] of the tokenizer, its special tokens included",
            "mask": "bool [n, t], false where a text is filled up",
            "tokenizer": tokenizer_path(out).name,
            "max_length": encoder.embedder.max_length,
            "unit_length": bool(encoder.embedder.module.normalize),
        }
    dtype = encoder.config["data"]["image_dtype"]
    return {
        "images": f"{dtype} {['n', *encoder.input_shape]}",
        "size": "shorter side resized (bilinear with antialiasing), centre kept",
        "scaling": "divided by 255" if dtype == "uint8" else "none",
        "normalisation": encoder.config.get("normalisation", "none"),
    }


def citation(experiment: str, config_name: str) -> dict[str, Any] | None:
    """The paper of the system that has this config or, of a config elsewhere, is so called."""
    systems = read_systems().values()
    key = experiment.rpartition(".")[2]
    for found in (
        [one for one in systems if config_name in one.configs],
        [one for one in systems if one.key == key],
    ):
        if found:
            one = found[0]
            return {
                "title": one.title, "authors": list(one.authors), "year": one.year,
                "venue": one.venue, "arxiv": one.arxiv,
            }  # fmt: skip
    return None


def card_path(out: Path) -> Path:
    """Where the card of a file lies."""
    return out.with_name(out.name + ".json")


def tokenizer_path(out: Path) -> Path:
    """Where the tokenizer that belongs to a file lies."""
    return out.with_name(out.name + ".tokenizer.json")


def _beside(encoder: Any, out: Path) -> list[Path]:
    return [card_path(out), *([tokenizer_path(out)] if encoder.kind == "texts" else [])]


def _write(encoder: Any, out: Path, content: bytes, card: dict[str, Any]) -> None:
    """Writes what lies beside a file of an encoder, then the file: all of it or nothing."""
    parts = {card_path(out): (json.dumps(card, indent=2) + "\n").encode()}
    if encoder.kind == "texts":
        tokenizer = encoder.embedder.tokenizer.to_str(pretty=True)
        parts[tokenizer_path(out)] = tokenizer.encode()
    with ExitStack() as stack:
        for path, part in {**parts, out: content}.items():
            write_whole(path, methodcaller("write", part))
            stack.callback(path.unlink, missing_ok=True)
        stack.pop_all()


def _missing(package: str) -> UserError:
    return UserError(f"this format needs the package {package}: {install('export')}")


if __name__ == "__main__":
    keep_compiled()
    quiet_libraries()
    leave(main(sys.argv[1:]))
