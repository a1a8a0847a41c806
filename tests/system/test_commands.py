"""The commands of README.md, WORKSPACE.md and the site: known, right, and run as typed."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import ranges, registry
from tests.system.commands import (
    AREAS,
    COPIED,
    DOCUMENTS,
    FULL,
    NOT_RUN,
    QUICK,
    commands,
    how,
    inline_commands,
    shorten,
)

ROOT = Path(__file__).parents[2]
PROGRAMS = ("python", "make", "cp", "rm", "pip", ".", "tensorboard", "tests/system/first_hour.sh")
PLACEHOLDER = re.compile(r"^[A-Z]+$|\.\.\.")
"""What stands for a value in a command inside a line, such as FILE."""


def flags_of(module: str) -> str:
    """The source that defines the flags of a module run by `python -m`, of its package too."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    origin = Path(str(spec.origin))
    files = origin.parent.glob("*.py") if spec.submodule_search_locations else [origin]
    shared = ("experiments.export", "experiments.merge", "experiments.resize")
    used = [ROOT / "experiments/embed.py"] if module in shared else []
    return "\n".join(file.read_text() for file in (*files, *used))


def check_command(command: str) -> None:
    """Fails where a command names a program, target, module, flag or value that is unknown."""
    words = shlex.split(command)
    while words and re.match(r"^\w+=", words[0]):
        words = words[1:]
    if not words:
        return
    assert words[0] in PROGRAMS, command
    if words[0] == "make":
        made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in made, command
    if words[:2] == ["python", "-m"] and words[2] != "pytest":
        check_module(words[2], words[3:])
    if words[:2] == ["python", "-c"]:
        check_program(words[2])


def check_module(module: str, arguments: list[str]) -> None:
    """Checks flags by the module's source, and overrides as the launcher does."""
    defined = flags_of(module)
    options = [argument for argument in arguments if argument.startswith("--")]
    for option in options:
        name = option.lstrip("-").partition("=")[0]
        bare = name.removeprefix("no")
        known = name.startswith("config.") or name in ("config", "help")
        assert known or re.search(rf'"(--)?({name}|{bare})"', defined), f"{module}: --{name}"
    paths = [option.partition("=")[2] for option in options if option.startswith("--config=")]
    if not paths or PLACEHOLDER.search(paths[0]):
        return
    grid = [re.sub(r",.*", "", word) for word in arguments if re.match(r"^[a-z_.]+=", word)]
    overrides = [option for option in options if option.startswith("--config.")]
    config = registry.read_config(paths[0], [*overrides, *(f"--config.{value}" for value in grid)])
    ranges.check_config(config)


def check_program(text: str) -> None:
    """Carries out a block's imports, the rest of which must compile."""
    tree = ast.parse(text)
    compile(tree, "block", "exec")
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "block", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_blocks_are_right(document):
    for command in commands(document):
        if how(document, command) not in (QUICK, COPIED) and "temprature" not in command:
            check_command(command)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_inside_lines_are_right(document):
    for command in inline_commands(document):
        check_command(command)


def test_pages_of_the_site_are_among_the_documents():
    assert {"docs/index.md", "docs/areas/merging.md", "docs/guides/run.md"} <= {*DOCUMENTS}
    assert any("experiments.merge" in command for command in commands("docs/areas/merging.md"))


def test_every_command_is_run_or_says_why_not():
    known = {(document, command) for document in DOCUMENTS for command in commands(document)}
    assert {how(*each) for each in known} >= {QUICK, FULL}
    for document, command in known:
        if how(document, command) in (QUICK, FULL):
            assert command.split()[0] in ("python", "cp", ".", "make"), command
    inside = [command for document in DOCUMENTS for command in inline_commands(document)]
    every = [*(command for _, command in known), *inside]
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, c) for c in every)]
    assert unused == []


def test_names_in_blocks_of_python_are_defined(tmp_path):
    for number, document in enumerate(DOCUMENTS):
        if document in AREAS:  # they show fragments
            continue
        for place, command in enumerate(commands(document)):
            arguments = shlex.split(command) if command.startswith("python -c") else []
            if arguments:
                (tmp_path / f"document{number}_block{place}.py").write_text(arguments[2])
    assert len(list(tmp_path.iterdir())) > 10
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--select=F821"]
    done = subprocess.run([*ruff, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{dict(enumerate(DOCUMENTS))}\n{done.stdout}"


def test_commands_are_found_as_they_are_typed(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text(
        "```\nmake demo  # figures\npython -m a --b=1 \\\n    --config.train.steps=300\n```\n"
        "```\n$ python -m b\noutput\n```\n```toml\nx = 1\n```\n``` { .python }\nshown\n```\n"
        "    ```python\nimport a\n    ```\nand `make docs`, `x`\n"
    )
    monkeypatch.setattr("tests.system.commands.ROOT", tmp_path)
    found = commands("page.md")
    joined = "python -m a --b=1 --config.train.steps=300"
    assert found == ["make demo", joined, "python -m b", "python -c 'import a\n'"]
    assert inline_commands("page.md") == ["make docs"]
    assert shorten(joined).endswith("steps=3")


@pytest.mark.parametrize(
    "command",
    [
        "make demos", "python -m experiments.runs", "python -m experiments.report runs --outt=x",
        "python -m experiments.run --config=configs/contrastive/simclr_digits.py --config.a=1",
        "python -c 'from rml import no_such_name'", "rml train",
    ],
)  # fmt: skip
def test_wrong_commands_are_noticed(command):
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever notices it
        check_command(command)


@pytest.mark.slow
def test_first_hour(forking_python):
    """The whole of README.md and of the guide to a new method, in a bare clone."""
    done = subprocess.run(
        ["bash", "tests/system/first_hour.sh"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PY": sys.executable, "FORKS": str(forking_python)},
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    steps = re.findall(r"^ *\d+ s  (.*)$", done.stdout, re.M)
    assert steps[-1] == "in all"
    for document in ("README.md", "docs/guides/method.md"):
        for command in commands(document):
            if how(document, command) == QUICK:
                assert shorten(command).splitlines()[0] in steps, command
