"""Experiments by name; without flags, so that any module may import it."""

import importlib
from pathlib import Path
from typing import Any

from rml.errors import unknown


def find_experiment(name: str) -> Any:
    """The module of an experiment, `experiments.<area>.<name>`.

    Raises:
      UserError: There is no such module.
    """
    folder = Path(__file__).parent
    known = [
        ".".join(p.relative_to(folder).with_suffix("").parts)
        for p in folder.glob("*/*.py")
        if p.stem != "__init__"
    ]
    if name not in known:
        raise unknown("experiment", name, known)
    return importlib.import_module(f"experiments.{name}")
