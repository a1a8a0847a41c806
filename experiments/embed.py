"""Features of data by a trained encoder, as one `.npz` file.

python -m experiments.embed RUN --data=folder:PATH --out=features.npz
python -m experiments.embed RUN --data=npz:PATH --split=test --out=features.npz
python -m experiments.embed weights:efficientnet_lite0@224 --data=folder:PATH --out=features.npz

The file holds `x` (features, float32 [n, d]); where the data has them `y` (labels, from 0) with
`class_names`; and `files` or `ids`, which say what each row is of. It is itself data of the name
`npz:features.npz`.
"""

if __name__ == "__main__":
    from experiments.interrupts import stop_at_once

    stop_at_once()

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cpu import convolve_on_all_cores
from experiments.interrupts import INTERRUPTED, leave, raise_interrupts
from experiments.startup import (
    LocalPath,
    Parser,
    check_writable,
    keep_compiled,
    quiet_libraries,
)
from rml.errors import UserError

SPLIT = "all"
"""Split of the data that features are of where none is named."""
DATA_OF = {"images": ("folder", "images", "npz"), "texts": ("texts", "beir")}
"""By what an encoder takes, the beginnings of data sets' names that are such."""


def main(argv: Sequence[str]) -> int:
    """Writes the features of a data set and says how many.

    Args:
      argv: Arguments of the program, without its name.

    Returns:
      The exit status.
    """
    parser = make_parser("embed", __doc__)
    parser.add_argument("--data", metavar="NAME", help="data set: folder:PATH, npz:PATH, a name")
    return run_tool(parser, argv, write_features, check_npz)


def make_parser(tool: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of a tool that takes a run, described by the docstring of its module."""
    parser = plain_parser(tool, text)
    parser.add_argument(
        "directory", nargs="?", metavar="RUN", help="run directory, or weights:NAME"
    )
    parser.add_argument("--run", help="the same, named")
    parser.add_argument("--step", type=int, help="step of the checkpoint, the newest by default")
    parser.add_argument("--split", default=SPLIT, help="split of the data, such as train[:10%%]")
    return parser


def plain_parser(tool: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of a tool that writes a file, described likewise."""
    description, _, usage = (text or "").partition("\n\n")
    parser = Parser(
        prog=f"python -m experiments.{tool}", description=description, epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--out", action=LocalPath, help="file to write, which must not exist")
    return parser


def run_tool(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    write: Callable[[Any, argparse.Namespace], str],
    check: Callable[[argparse.Namespace], None] = lambda options: None,
) -> int:
    """Loads the encoder that a command names and writes a file of it.

    Args:
      parser: See `make_parser`.
      argv: Arguments of the program.
      write: `write(encoder, options) -> message`.
      check: Function of the options that is called before the encoder is loaded.

    Returns:
      The exit status; a mistake is told in one line.
    """

    def load_and_write(options: argparse.Namespace) -> str:
        runs = [one for one in (options.directory, options.run) if one]
        if len(runs) != 1:
            raise UserError(f"got {len(runs)} run directories, expected one: {parser.prog} RUN")
        check_out(options.out)
        check(options)
        import rml

        return write(rml.load(runs[0], step=options.step), options)

    return run_command(parser, argv, load_and_write)


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    work: Callable[[argparse.Namespace], str],
) -> int:
    """Does what a command asks for and prints what was done.

    Args:
      parser: Parser of the command.
      argv: Arguments of the program.
      work: `work(options) -> message`.

    Returns:
      The exit status; a mistake is told in one line.
    """
    try:
        print(work(parser.parse_args(argv)), flush=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", flush=True)
        return INTERRUPTED
    return 0


def check_out(out: Path | None) -> None:
    """Raises `UserError` unless a file is named that does not exist and can be written."""
    if out is None:
        raise UserError("no --out; expected the file to write, such as --out=features.npz")
    check_absent(out)
    check_writable(out.parent, f"--out={out}")


def check_npz(options: argparse.Namespace) -> None:
    """Raises `UserError` where the file's name says that it is of another kind than is written."""
    if options.out.suffix not in ("", ".npz"):
        raise UserError(f"--out is {options.out}, expected a name that ends in .npz")


def check_absent(*paths: Path) -> None:
    """Raises `UserError` where a file exists that would be written."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; give another --out")


def write_features(encoder: Any, options: argparse.Namespace) -> str:
    """Writes the features of the data that a command names; what was done in one line."""
    if not options.data:
        raise UserError("no --data; expected a data set, such as --data=folder:path/to/images")
    from rml.training import Progress

    unit = encoder.kind.removesuffix("s")
    progress = Progress(quiet=not sys.stdout.isatty(), unit=unit)
    started = time.perf_counter()
    try:
        arrays = embed(encoder, options.data, options.split, progress)
    finally:
        progress.stop()
    seconds = time.perf_counter() - started
    write_whole(options.out, lambda file: np.savez(file, **arrays))
    rows, width = arrays["x"].shape
    return (
        f"{options.out}: {rows} {encoder.kind} x {width} features, {seconds:.1f} s "
        f"({rows / seconds:.0f} {encoder.kind}/s)"
    )


def embed(encoder: Any, name: str, split: str, progress: Any) -> dict[str, Any]:
    """Features of a data set, with what is known of each row.

    Args:
      encoder: An `rml.Encoder`.
      name: Name of the data set, see `rml.data.load`; of texts, see `rml.data.text`.
      split: Split of the data set.
      progress: An `rml.training.Progress`.

    Returns:
      The arrays of the file.
    """
    beginning, colon, _ = name.partition(":")
    for kind, beginnings in DATA_OF.items():
        if colon and beginning in beginnings and kind != encoder.kind:
            expected = ", ".join(f"{one}:PATH" for one in DATA_OF[encoder.kind])
            raise UserError(
                f"--data is {name}, which is {kind}; the encoder takes {encoder.kind}: "
                f"expected {expected} or the name of a data set"
            )
    data_dir = encoder.config["data"].get("data_dir")
    found: dict[str, Any]
    if encoder.kind == "texts":
        inputs, found = open_texts(name, split, data_dir)
        return {"x": encode(encoder, inputs, progress), **found}
    from rml.data import load

    source = load(name, split, data_dir=data_dir)
    images = encoder.read(source)
    found = {"x": encode(encoder, images, progress)}
    if source.files is not None:
        found["files"] = np.array(source.files)
    if source.labelled:
        found |= {"y": images.labels, "class_names": np.array(source.class_names)}
    return found


def encode(encoder: Any, inputs: Any, progress: Any) -> np.ndarray:
    """Features of inputs, with the course of the work shown."""
    progress.start(0, len(inputs))
    features: np.ndarray = encoder(inputs, progress=lambda done, _: progress.advance(done))
    return features


def open_texts(name: str, split: str, data_dir: Any) -> tuple[list[str], dict[str, Any]]:
    """Texts of a data set, and the arrays that say what each is of."""
    from rml.data import load_retrieval, load_text

    if name.partition(":")[0] in ("beir", "texts"):
        read = load_retrieval(name, split)
        return read.documents, {"ids": np.array(read.document_ids)}
    texts, labels, class_names = load_text(name, split, data_dir=data_dir)
    return texts, {"y": labels, "class_names": np.array(class_names)}


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes a new file whole or not at all; `write(file)` gives its content.

    Raises:
      UserError: The file exists, or cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
            check_absent(path)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    raise_interrupts()
    convolve_on_all_cores()
    keep_compiled()
    quiet_libraries()
    leave(main(sys.argv[1:]))
