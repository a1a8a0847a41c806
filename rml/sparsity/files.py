"""Files of what is added to a model: thresholds and edits, as safetensors."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike

from rml.errors import UserError
from rml.models.pretrained.extra import require
from rml.training.durable import replacing


def write_new(file: str | Path, tensors: Mapping[str, ArrayLike]) -> None:
    """Writes arrays by their names to a new file, which is there whole or not at all.

    Args:
      file: File to write, which must not exist; its folder is made.
      tensors: Arrays of any layout in memory.

    Raises:
      UserError: The file exists.
    """
    file = Path(file)
    if file.exists():
        raise UserError(f"{file} exists, expected a new file")
    file.parent.mkdir(parents=True, exist_ok=True)
    # The format keeps bytes as they lie in memory, and takes them for rows.
    rows = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    with replacing(file) as partial:
        require("safetensors.numpy").save_file(rows, str(partial))
