"""The commands of the documents, and which of them are run.

`python -m tests.system.commands FILE` prints those of a document that `first_hour.sh` runs, each
followed by a null byte, with a hundredth of the training steps; with `--full` as typed, those that
take minutes too.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES, AREAS = (
    tuple(sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / folder).glob("*.md")))
    for folder in ("guides", "areas")
)
DOCUMENTS = ("README.md", "WORKSPACE.md", "tpu/README.md", "docs/index.md", *GUIDES, *AREAS)
FENCE = re.compile(r"^ *```(?P<language>[^\n`]*)\n(?P<text>.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"`((?:make|python -m|pip|tensorboard) [^`]*)`")
SHELL = ("", "sh", "bash", "console")
STEPS = re.compile(r"(?<=train\.steps=)\d+")

QUICK_DOCUMENTS = ("README.md", "docs/guides/method.md")
QUICK, FULL = "first_hour.sh", "first_hour.sh --full"
COPIES, COPIED = "docs/guides/trial.md", "its skeletons are run by tests/trials/test_guide.py"
NOT_RUN = {
    r"^make (demo|test|test-fast|lint|hooks)\b|first_hour\.sh": "they are how the tests are run",
    r"^make (assets|cards|claims|bench|docs|weights|report|help)": "long; their tests run parts",
    r"^python -m (experiments\.claims|benchmarks\.)": "ten minutes and more; their tests run less",
    r"two_steps": "minutes; tests/system/test_two_steps.py runs a dozen",
    r"search_pydocs|contriever": "needs weights; tests/system/test_retrieval.py",
    r"weights:|load_images": "needs weights; tests/system/test_weights.py",
    r"load\(\"smollm2\"\)": "needs weights; tests/models/test_text_families.py",
    r"= \.\.\.|large\.apply|loaded\.": "a fragment, in which names are the reader's own",
    r"layer_activations\(": "a fragment, in which names are the reader's own",
    r"runs/bed": "needs a bed of experts; tests/merging/test_merge_twin.py",
    r"^rm -r ": "clears a cache outside the clone",
    r"tpu\.aot|'\.\[(tpu|cuda)\]'": "needs the tpu or the cuda extra; tests/tpu",
    r"tpu\.launch|^(FLAGS|RUN)=": "needs a Google Cloud project; tests/tpu",
    r"--coordinator_address|--distributed": "needs other processes; tests/system/test_processes.py",
    r"--slurm|\[slurm\]": "needs a cluster; the tests of sweeps run its jobs here",
    r"--mlflow|\[tracking\]": "needs the tracking extra; its tests run it where it is",
    r"loss\.temprature": "ends with an error, as shown; tests/system/test_launcher.py",
    r"^tensorboard": "serves until it is stopped",
}  # fmt: skip
"""Why a command in which the pattern is found is not run by `first_hour.sh`."""


def commands(document: str) -> list[str]:
    """The commands of a document's blocks in their order, a block of Python being one.

    Of a block with prompts the commands behind them are taken, the rest is output. Comments are
    left out, continued lines joined.
    """
    found: list[str] = []
    for block in FENCE.finditer((ROOT / document).read_text()):
        if block["language"] == "python":
            found.append(f"python -c {shlex.quote(block['text'])}")
        elif block["language"] in SHELL:
            found += _lines(block["text"])
    return found


def inline_commands(document: str) -> list[str]:
    """The commands that stand inside a line, such as those of a table."""
    return INLINE.findall(FENCE.sub("", (ROOT / document).read_text()))


def how(document: str, command: str) -> str:
    """What runs a command of a document, or why nothing does."""
    if document == "README.md" and command == "make demo":
        return QUICK
    if document == COPIES:
        return COPIED
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, command):
            return reason
    return QUICK if document in QUICK_DOCUMENTS else FULL


def shorten(command: str) -> str:
    """A command with a hundredth of its training steps."""
    return STEPS.sub(lambda steps: str(max(1, int(steps[0]) // 100)), command)


def _lines(text: str) -> Iterator[str]:
    """The commands of a block of the shell."""
    lines = [line.strip() for line in re.sub(r" *\\\n\s*", " ", text).splitlines()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        command = re.sub(r"(^|\s+)# .*", "", line)
        if command:
            yield command


if __name__ == "__main__":
    full = "--full" in sys.argv
    document = sys.argv[-1]
    for command in commands(document):
        if how(document, command) in ((QUICK, FULL) if full else (QUICK,)):
            sys.stdout.write((command if full else shorten(command)) + "\0")
