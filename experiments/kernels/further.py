"""The comparison of `experiments.kernels.regression` on three further tables.

Yang et al., arXiv:2108.13097. `wine` is the alcohol of wines from twelve other measurements,
`cells` the worst concavity of the nuclei of a tumour from the means over its nuclei (both from
scikit-learn), `flights` the delay of arrivals, of which some are drawn.
"""

from typing import Any

import numpy as np

from experiments.kernels import regression
from rml.errors import UserError, unknown
from rml.training import RunDirectory

NAMES = ("wine", "cells", "flights")
CLAIMS = regression.claims(NAMES, stated="2026-11-26")
CAPTIONS = regression.captions(NAMES)
PICTURE = "cells_widths.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    if missing := sorted(set(NAMES) - set(config.data.names)):
        raise UserError(f"data.names lacks {missing}, which the claims are about")
    loaded = {name: load(name, config.data.flights) for name in config.data.names}
    return regression.run_tables(config, run, loaded)


def load(name: str, flights: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads inputs and target of a table.

    Args:
      name: One of `NAMES`.
      flights: Number of flights that are drawn, evenly over the year.

    Raises:
      UserError: If the table is unknown or the file of flights is not there.
    """
    if name not in NAMES:
        raise unknown("table", name, NAMES)
    if name == "flights":
        return load_flights(flights)
    from sklearn import datasets  # slow to import

    if name == "wine":
        x = datasets.load_wine().data
        return x[:, 1:], x[:, :1]
    found = datasets.load_breast_cancer()
    worst = list(found.feature_names).index("worst concavity")
    return found.data[:, :10], found.data[:, worst, None]


def load_flights(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads flights: month, day, hour, distance, airports of origin; delay in minutes."""
    from rml.data.sets.flights import NUMBERS, read

    flights = list(read())
    if not 0 < count <= len(flights):
        raise UserError(f"data.flights is {count}, expected 1 to {len(flights)}")
    rows = flights[:: len(flights) // count][:count]
    airports = sorted({row["origin"] for row in rows})
    numbers = [[float(row[name]) for name in NUMBERS] for row in rows]
    origin = [[float(row["origin"] == airport) for airport in airports] for row in rows]
    delay = [[row["delay"]] for row in rows]
    return np.concatenate([numbers, origin], axis=1), np.asarray(delay)
