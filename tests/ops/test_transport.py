"""Entropic transport by a package that may be missing; its users' tests have the numbers."""

import re
import sys

import jax.numpy as jnp
import pytest

from rml.errors import UserError, install
from rml.fewshot import pt_map
from rml.merging import transport_map
from rml.ops.transport import import_sinkhorn


@pytest.mark.slow
def test_sinkhorn_reaches_the_margins_of_a_problem():
    pytest.importorskip("ott")
    found = import_sinkhorn("it")
    rows, columns = jnp.array([0.5, 0.2, 0.3]), jnp.array([0.4, 0.6])
    cost = jnp.array([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])
    problem = found.problem(found.geometry(cost_matrix=cost, epsilon=0.5), a=rows, b=columns)
    plan = found.solver(threshold=1e-6)(problem).matrix
    assert jnp.allclose(plan.sum(1), rows, atol=1e-5)
    assert jnp.allclose(plan.sum(0), columns, atol=1e-5)


def test_without_the_package_the_method_and_the_extra_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott.geometry", None)
    cure = re.escape(f"needs ott-jax: {install('transport')}")
    with pytest.raises(UserError, match=f"^it {cure}$"):
        import_sinkhorn("it")
    with pytest.raises(UserError, match=f"^solver 'sinkhorn', unlike 'exact', {cure}$"):
        transport_map(jnp.ones((2, 3)))
    assert transport_map(jnp.eye(2), solver="exact").shape == (2, 2)
    support, query = jnp.eye(3)[:2] + 0.1, jnp.eye(3) + 0.2
    with pytest.raises(UserError, match=f"^pt_map {cure}$"):
        pt_map(support, jnp.arange(2), query, num_classes=2)
