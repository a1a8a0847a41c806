"""A folder of text files as passages that say where they are from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rml.data.errors import DataError
from rml.data.own import walk

SUFFIXES = (
    ".txt", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".py", ".c", ".h", ".cc", ".cpp",
    ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".jl", ".r", ".sh", ".toml", ".yaml",
    ".yml",
)  # fmt: skip
"""Endings of the files that are read."""

WORDS = 160
"""The most words of a passage: about 256 tokens of English, what small encoders read."""


class Passage(NamedTuple):
    """Lines of a file.

    Attributes:
      file: Path below the folder, with "/".
      line: Number of the line where it begins, from 1.
      text: Text that stands there.
    """

    file: str
    line: int
    text: str


def read_passages(path: Path, *, words: int = WORDS) -> list[Passage]:
    """Cuts every text file of a folder, or one file, into passages.

    A passage is as many lines as `words` hold and ends, where it can, at an empty line in its
    second half. A line of more words is cut. Hidden files and folders are not read, folders that
    links lead to are.

    Args:
      path: The folder or the file.
      words: The most words of a passage.

    Returns:
      The passages in the order of files and lines; none is empty.

    Raises:
      DataError: If there is no such folder, no text in it, or a file or folder below it cannot be
        read or is not UTF-8.
    """
    if words < 1:
        raise DataError(f"words must be at least 1, got {words}")
    if not path.exists():
        raise DataError(f"there is no folder {path}")
    files = [path] if path.is_file() else sorted(_files(path))
    root = path.parent if path.is_file() else path
    found = []
    for file in files:
        try:
            content = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text: {error}") from error
        except OSError as error:  # a link to nothing, a file of another user
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        name = file.relative_to(root).as_posix()
        found += [Passage(name, line, text) for line, text in cut(content, words=words)]
    if not found:
        raise DataError(f"{path} holds no text, expected files such as {', '.join(SUFFIXES[:8])}")
    return found


def _files(path: Path) -> Iterator[Path]:
    for directory, names in walk(path):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield directory / name


def cut(text: str, *, words: int = WORDS) -> Iterator[tuple[int, str]]:
    """Cuts a text into passages, each with the number of its first line, see `read_passages`."""
    held: list[tuple[int, str, int]] = []  # line number, line, its words
    total = 0  # words of these lines
    for piece in _pieces(text, words):
        while held and total + piece[2] > words:
            end = _end(held, words)
            yield from _passage(held[:end])
            total -= sum(count for _, _, count in held[:end])
            del held[:end]
        held.append(piece)
        total += piece[2]
    yield from _passage(held)


def _pieces(text: str, words: int) -> Iterator[tuple[int, str, int]]:
    """Lines, those of more than `words` words in parts."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        found = line.split()
        if len(found) <= words:
            yield number, line, len(found)
            continue
        for at in range(0, len(found), words):
            part = found[at : at + words]
            yield number, " ".join(part), len(part)


def _end(held: list[tuple[int, str, int]], words: int) -> int:
    """How many lines make a passage: up to the last empty one with half of the words before it."""
    before, end = 0, len(held)
    for at, (_, line, count) in enumerate(held):
        if not line.strip() and before >= words / 2:
            end = at
        before += count
    return max(end, 1)


def _passage(lines: list[tuple[int, str, int]]) -> Iterator[tuple[int, str]]:
    filled = [at for at, (_, line, _) in enumerate(lines) if line.strip()]
    if filled:
        kept = lines[filled[0] : filled[-1] + 1]
        yield kept[0][0], "\n".join(line.rstrip() for _, line, _ in kept)
