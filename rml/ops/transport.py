"""Entropic optimal transport by ott-jax, a package that only some methods need."""

from typing import Any, NamedTuple

from rml.errors import UserError, install


class Sinkhorn(NamedTuple):
    """Classes of ott-jax that solve a linear problem of transport.

    Attributes:
      geometry: Makes a geometry of a cost matrix and a regularisation.
      problem: Makes a problem of a geometry and two margins.
      solver: Makes Sinkhorn's solver of its tolerance and its limits.
    """

    geometry: Any
    problem: Any
    solver: Any


def import_sinkhorn(needed_by: str) -> Sinkhorn:
    """Imports Sinkhorn's algorithm with what describes a problem.

    Args:
      needed_by: Name of the method that needs it, for the message.

    Returns:
      The classes.

    Raises:
      UserError: The package ott-jax is not installed.
    """
    try:
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn
    except ImportError:
        raise UserError(f"{needed_by} needs ott-jax: {install('transport')}") from None
    return Sinkhorn(geometry.Geometry, linear_problem.LinearProblem, sinkhorn.Sinkhorn)
