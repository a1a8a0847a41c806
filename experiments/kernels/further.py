"""The comparison of `experiments.kernels.regression` on three further tables.

Yang et al., arXiv:2108.13097. Of the flights some are taken, evenly over the year.
"""

from typing import Any

from experiments.kernels import regression
from rml.data import tables
from rml.errors import UserError
from rml.training import RunDirectory

NAMES = ("wine", "cells", "flights")
CLAIMS = regression.claims(NAMES, stated="2026-11-26")
CAPTIONS = regression.captions(NAMES)
PICTURE = "cells_widths.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    if missing := sorted(set(NAMES) - set(config.data.names)):
        raise UserError(f"data.names lacks {missing}, which the claims are about")
    loaded = {name: tables.load_table(name) for name in config.data.names}
    x, y = loaded["flights"]
    count = config.data.flights
    if not 0 < count <= len(x):
        raise UserError(f"data.flights is {count}, expected 1 to {len(x)}")
    loaded["flights"] = x[:: len(x) // count][:count], y[:: len(x) // count][:count]
    return regression.run_tables(config, run, loaded)
