"""Encoders that were fine-tuned from one base, merged into one.

python -m experiments.merge runs/bed,expert=greek runs/bed,expert=latin --base=runs/bed \
    --method=ties --option scale=0.7 --out=merged.safetensors
python -m experiments.merge FIRST SECOND --method=average --data=digits --out=merged.safetensors
python -m experiments.merge FIRST SECOND --method=ot --data=digits --out=fused.safetensors
python -m experiments.merge FIRST SECOND --method=fisher --data=digits --examples=512 \
    --out=merged.safetensors
python -m experiments.merge FIRST SECOND --method=regmean --data=digits --option alpha=0.9 \
    --out=merged.safetensors
python -m experiments.merge runs/bed,expert=digits runs/bed,expert=mnist5k --base=runs/bed \
    --method=twin --task=digits --task=mnist5k --format=stablehlo --out=twin.stablehlo
python -m experiments.merge runs/bed,expert=digits runs/bed,expert=mnist5k --base=runs/bed \
    --method=atlas --task=digits --task=mnist5k --examples=512 --out=merged.safetensors
python -m experiments.merge a.safetensors b.safetensors --base=c.safetensors --method=ties \
    --out=merged.safetensors

An encoder is a run directory, with options of its recipe's encoder after commas, or weights:NAME,
such as weights:hf:FOLDER of safetensors. One that is named twice counts twice. With --data each
encoder and the merged one are judged by nearest neighbours on images of --split, half of which
vote, or on texts, whose features --text and --label name.

The methods "ot", for transformers of different seeds, "fisher" and "regmean" read
--examples images of --read: "ot" compares units by them and puts those of all in the places of the
last encoder's; "fisher" takes class means as a head; "regmean" weighs kernels by what their layers
read, and --option averaged=REGEX names those that features do not take. "atlas" and "twin" read
--examples of --read of each encoder's own task, a --task each, and are judged on --split of these;
texts are named by --task=NAME,text=FEATURE,label=FEATURE. "atlas" learns a coefficient for each
block of each encoder's vector from labels. "twin" keeps what each encoder has beyond a shared one
in few numbers and trains a router, which says for every image or text how much of which encoder it
is given. What is written is what `python -m experiments.export` writes of a run. Files or folders
of safetensors, of any architecture, are merged as they are, a part at a time.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.cpu import convolve_on_all_cores
from experiments.embed import check_out, plain_parser, run_command
from experiments.export import FORMATS, check_beside, check_export
from experiments.interrupts import leave
from experiments.startup import keep_compiled, quiet_libraries
from rml.errors import UserError, local_path

TRANSPORT = "ot"
"""Alignment by transport, then the average: `rml.merging.align`, for models of different seeds."""
ATLAS, TWIN = "atlas", "twin"
BY_TASKS = (ATLAS, TWIN)
"""Methods for encoders of different tasks, which read data of each one's own: a coefficient for
each block of each vector, and twin-merging; see `experiments.merge_atlas` and `merge_twin`."""
NEEDS_DATA = ("fisher", "regmean", TRANSPORT)
"""Methods that read images."""
WORDS = (
    "averaged", "compress", "disjoint", "exclude", "features", "heads", "metric", "query_key",
    "residual", "solver",
)  # fmt: skip
"""Options of methods whose values are words."""
EITHER = ("scale",)
"""Options that are a word of one method and a number of others."""
OWN = (
    "by_block", "count", "excluded", "fishers", "grams", "kept", "least", "order", "parts",
    "shared",
)  # fmt: skip
"""Options of methods that this command gives, or has none of."""
MORE = {ATLAS: ("steps",), TWIN: ("top",)}
"""Options that methods have here beside those of their functions."""


def main(argv: Sequence[str]) -> int:
    """Merges the encoders that a command names and writes the result.

    Args:
      argv: Arguments of the program, without its name.

    Returns:
      The exit status.
    """
    parser = plain_parser("merge", __doc__)
    parser.add_argument("encoders", nargs="+", metavar="ENCODER", help="run directory or weights")
    parser.add_argument("--base", help="what all were fine-tuned from")
    parser.add_argument(
        "--method", default="task_arithmetic", help="row of rml.merging.METHODS, ot, atlas or twin"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the method"
    )
    parser.add_argument("--format", default="safetensors", choices=sorted(FORMATS))
    parser.add_argument("--data", metavar="NAME", help="images or texts with classes to judge by")
    parser.add_argument("--text", default="", help="feature of the data that holds texts")
    parser.add_argument("--label", default="", help="feature that holds their classes")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME",
        help="data of an encoder's own task, of atlas and twin; one for each encoder",
    )  # fmt: skip
    parser.add_argument("--split", default="test", help="split of the data to judge by")
    parser.add_argument("--read", default="train", help="split that these methods read")
    parser.add_argument("--examples", type=int, default=256, help="number of images they read")
    return run_command(parser, argv, merged)


def merged(options: argparse.Namespace) -> str:
    """Merges, judges where data is named, writes; what was done in lines."""
    check_out(options.out)
    method = method_of(options)
    given = [option_of(text) for text in options.option]
    names = (*options.encoders, *filter(None, [options.base]))
    if method not in BY_TASKS and all(map(is_checkpoint, names)):
        return merged_files(method, options, dict(given))
    check_export(options)
    named = open_all(options.encoders)
    base = open_named(options.base) if options.base else None
    check_beside(base or next(iter(named.values())), options)
    if method in BY_TASKS:
        return merge_by_tasks(method, base, named, options, dict(given))
    if method in NEEDS_DATA:
        result = merge_by_images(method, named, options, dict(given))
    else:
        if options.data:
            from experiments.merge_judging import check_data

            check_data(next(iter(named.values())), options, options.split)
        result = merge_encoders(method, base, named, dict(given))
    lines = lines_of({**named, "merged": result}, options) if options.data else []
    return "\n".join([*lines, FORMATS[options.format](result, options)])


def merge_by_images(
    method: str, named: dict[str, Any], options: argparse.Namespace, given: dict[str, Any]
) -> Any:
    """The encoder that a method of `NEEDS_DATA` makes of encoders and images."""
    from experiments.merge_images import fisher, fused, grams, with_averages
    from experiments.merge_judging import check_data, spread

    check_options(method, given)
    shapes = {own.input_shape for own in named.values()}
    if len(shapes) > 1:
        raise UserError(f"encoders read images of {' and '.join(map(str, shapes))}, expected equal")
    first = next(iter(named.values()))
    if first.kind != "images":
        raise UserError(f"this method reads images of --data, encoders of {first.kind} have none")
    check_data(first, options, options.split)
    images, labels = spread(first, options)
    if method == TRANSPORT:
        return fused(named, images, given)
    if method == "regmean":
        each = [grams(name, own, images) for name, own in named.items()]
        return merge_encoders(method, None, named, given, grams=each)
    fishers = [fisher(own, images, labels) for own in named.values()]
    found = merge_encoders(method, None, named, given, fishers=fishers)
    weights = {"weights": given["weights"]} if "weights" in given else {}
    plain = merge_encoders("weighted_average" if weights else "average", None, named, weights)
    return with_averages(found, plain, given.get("exclude"))


def merge_by_tasks(
    method: str, base: Any, named: dict[str, Any], options: argparse.Namespace,
    given: dict[str, Any],
) -> str:  # fmt: skip
    """Merges by a method of `BY_TASKS`, judges on each task, writes; what was done in lines."""
    from experiments import merge_atlas, merge_twin
    from experiments.merge_judging import check_data, tasks_of

    check_options(method, given)
    check_kinds([base, *named.values()])
    held_out = (merge_twin if method == TWIN else merge_atlas).HELD_OUT
    for task in tasks_of(options, len(named), held_out):
        check_data(base, task, task.read, task.split)
    if method == TWIN:
        found = merge_twin.twin(base, named, options, given)
        result, lines = found.twin, merge_twin.told(found, named, options)
    else:
        learned = merge_atlas.atlas(base, named, options, given)
        result, lines = learned.encoder, merge_atlas.told(learned, named, options)
    return "\n".join([*lines, FORMATS[options.format](result, options)])


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a file of safetensors, or of a folder of them that is no run."""
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return any(path.glob("*.safetensors")) and not (path / "checkpoints").exists()
    return path.suffix == ".safetensors"


def merged_files(method: str, options: argparse.Namespace, given: dict[str, Any]) -> str:
    """Merges files of safetensors; what was done in one line."""
    from rml.merging import merge_files

    if options.data or options.format != "safetensors":
        raise UserError(
            "files of safetensors are merged without --data and with --format=safetensors: their "
            "architecture is not known"
        )
    check_options(method, given)
    base = local_path(options.base, "--base") if options.base else None
    experts = [local_path(name, "ENCODER") for name in options.encoders]
    merge_files(method, base, experts, options.out, **given)
    return f"wrote {options.out}, {options.out.stat().st_size / 2**20:.1f} MiB"


def check_options(method: str, given: dict[str, Any]) -> None:
    """Raises `UserError` for an option that a method does not have or lacks, or a wrong value."""
    import inspect

    from rml.merging import METHODS, align, learn_scaling, modularise

    others: dict[str, Callable[..., Any]] = {
        TRANSPORT: align, TWIN: modularise, ATLAS: learn_scaling,
    }  # fmt: skip
    function = others[method] if method in others else METHODS[method].function
    own = {
        name: one for name, one in inspect.signature(function).parameters.items()
        if one.kind == one.KEYWORD_ONLY and name not in OWN
    }  # fmt: skip
    takes = [*own, *MORE.get(method, ())]
    for name in given:
        if name not in takes:
            raise UserError(f"{method} has no option {name!r}, expected one of: {', '.join(takes)}")
    for name, one in own.items():
        if name in given:
            check_value(name, given[name], word=isinstance(one.default, str))
        elif one.default is one.empty:
            raise UserError(f"{method} needs --option {name}=VALUE")


def check_value(name: str, value: Any, *, word: bool) -> None:
    """Raises `UserError` for a value that is no word or number of its option.

    Args:
      name: The option.
      value: What `option_of` made of its text.
      word: Whether the option is a word by default.
    """
    from experiments.ranges import AT_LEAST_0, DECAY, Range
    from rml.errors import unknown
    from rml.merging.ties import DISJOINT

    ranges = {"floor": AT_LEAST_0, "keep": Range(high=1, above=True), "rate": DECAY}
    if word and not isinstance(value, str):
        raise UserError(f"{name} is {value}, expected a word")
    if name in EITHER and not word and isinstance(value, str):
        raise UserError(f"{name} is {value!r}, expected a number")
    if name == "disjoint" and value not in DISJOINT:
        raise unknown(name, value, DISJOINT)
    if name == "averaged":
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(
                f"{name} is {value!r}, expected a regular expression: {error}"
            ) from None
    if name != "weights" and getattr(value, "ndim", None):
        raise UserError(f"{name} is {value.tolist()}, expected one number")
    if name in ranges and value not in ranges[name]:
        raise UserError(f"{name} is {value:g}, expected {ranges[name]}")


def method_of(options: argparse.Namespace) -> str:
    """The method that a command names, after what it needs was checked.

    Raises:
      UserError: It is unknown, needs data, or needs a base that is not given.
    """
    from rml.errors import unknown
    from rml.merging import METHODS
    from rml.merging.files import NO_BASE

    name: str = options.method
    usable = [*METHODS, TRANSPORT, *BY_TASKS]
    if name not in usable:
        raise unknown("method", name, usable)
    if name in NEEDS_DATA and not options.data:
        raise UserError(f"--method={name} needs --data, images that it reads")
    if name in NEEDS_DATA and options.base:
        raise UserError(
            f"--method={name} has --base={options.base}, expected none: it reads no base"
        )
    if bool(options.task) != (name in BY_TASKS):
        raise UserError(
            f"--method={name} with --task={','.join(options.task) or 'nothing'}, expected a task "
            f"for each encoder of {' and '.join(BY_TASKS)}, and of no other method"
        )
    if name in BY_TASKS and options.data:
        raise UserError(f"--data is {options.data}, expected --task alone for --method={name}")
    if not options.base and name not in (*NO_BASE, *NEEDS_DATA):
        raise UserError(f"--method={name} needs --base, the encoder that all were fine-tuned from")
    return name


def option_of(text: str) -> tuple[str, Any]:
    """A method's option from `name=number`, `weights=0.3,0.7` or a word; `key=0` is a seed."""
    import jax
    import numpy as np

    from experiments.ranges import RANGES

    name, equals, value = text.partition("=")
    if name in WORDS and value:
        return name, value
    try:
        numbers = [float(one) for one in value.split(",")]
    except ValueError:
        if name in EITHER and value:
            return name, value
        equals = ""
    if not equals:
        raise UserError(f"--option is {text!r}, expected NAME=NUMBER or NAME=NUMBER,NUMBER")
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"--option is {text!r}, expected finite numbers")
    if name == "key":
        if numbers != [int(numbers[0])] or int(numbers[0]) not in RANGES["seed"]:
            raise UserError(f"--option is {text!r}, expected {RANGES['seed']}")
        return name, jax.random.key(int(numbers[0]))
    return name, numbers[0] if len(numbers) == 1 else np.asarray(numbers)


def open_all(names: Sequence[str]) -> dict[str, Any]:
    """Opens encoders, by the names that messages give them; one named twice counts twice."""
    opened = {name: open_named(name) for name in dict.fromkeys(names)}
    found: dict[str, Any] = {}
    for place, name in enumerate(names):
        before = names[:place].count(name)
        found[f"{name} ({before + 1})" if before else name] = opened[name]
    return found


def open_named(name: str) -> Any:
    """The encoder of `RUN`, or of `RUN,option=value` with options of its recipe's encoder.

    The names of a sweep's runs have commas and equals signs themselves: of a path that exists
    nothing is an option, of any other what follows a comma in its last part.
    """
    import rml

    if Path(name).expanduser().exists():
        return rml.load(name)
    folder, slash, last = name.rpartition("/")
    path, *rest = last.split(",")
    options: dict[str, Any] = {key: value for key, _, value in (o.partition("=") for o in rest)}
    return rml.load(folder + slash + path, **options)


def merge_encoders(
    method: str, base: Any, named: dict[str, Any], options: dict[str, Any], **more: Any
) -> Any:
    """The encoder with merged variables, statistics of normalisation among them.

    Args:
      method: Name of the method.
      base: Encoder that all were fine-tuned from, or None.
      named: Encoders by the names that messages give them.
      options: Options of the method that a user gave.
      **more: Others.

    Returns:
      An encoder with all else as the base has it, or the first one.

    Raises:
      UserError: Kinds or trees differ, values are not finite, or an encoder is of another base.
    """
    from rml.merging import merge
    from rml.ops import trees

    check_options(method, options)
    first = base or next(iter(named.values()))
    check_kinds([first, *named.values()])
    variables = {name: own.variables for name, own in named.items()}
    trees.check_trees(first.variables, variables)
    # Without a base nothing is known of how far encoders may lie apart.
    trees.check_values(first.variables, variables, farthest=1.0 if base else float("inf"))
    found = merge(method, first.variables, list(variables.values()), **options, **more)
    return dataclasses.replace(first, embedder=dataclasses.replace(first.embedder, variables=found))


def check_kinds(encoders: Sequence[Any]) -> None:
    """Raises `UserError` for encoders of several kinds."""
    kinds = {encoder.kind for encoder in encoders}
    if len(kinds) > 1:
        raise UserError(f"encoders are of {' and '.join(sorted(kinds))}, expected of one kind")


def lines_of(judged: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Lines that say how right encoders are on the data of a command."""
    from experiments.merge_judging import NEIGHBOURS, accuracy

    return [
        f"{name}: {accuracy(encoder, options):.1%} are right by {NEIGHBOURS} nearest neighbours"
        for name, encoder in judged.items()
    ]


if __name__ == "__main__":
    convolve_on_all_cores()
    keep_compiled()
    quiet_libraries()
    leave(main(sys.argv[1:]))
