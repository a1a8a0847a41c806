"""Values of examples: their mean is the loss, on one device and in strips."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import (
    clip_loss,
    dcl,
    info_nce_with_queue,
    multiple_negatives_ranking,
    siglip_loss,
)

N = 6
LOSSES = {
    "clip": (lambda a, b, **how: clip_loss(a, b, log_scale=1.3, **how), N),
    "siglip": (lambda a, b, **how: siglip_loss(a, b, log_scale=1.3, bias=-2.0, **how), N),
    "dcl": (lambda a, b, **how: dcl(a, b, temperature=0.3, **how), 2 * N),
    "dclw": (lambda a, b, **how: dcl(a, b, temperature=0.3, sigma=0.4, **how), 2 * N),
    "mnr": (lambda a, b, **how: multiple_negatives_ranking(a, b, temperature=0.3, **how), N),
    "queue": (lambda a, b, **how: info_nce_with_queue(a, b, b + a, temperature=0.3, **how), N),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_values_is_the_loss(name, normal):
    loss, rows = LOSSES[name]
    a, b = jnp.asarray(normal(0, N, 4)), jnp.asarray(normal(1, N, 4))
    each = loss(a, b, reduction="none")
    assert each.shape == (rows,)
    assert float(jnp.std(each)) > 1e-2
    np.testing.assert_allclose(loss(a, b), each.mean(), rtol=1e-5)
    # Examples in another order have the same values in that order.
    order = np.random.default_rng(3).permutation(N)
    there = order if rows == N else np.concatenate([order, order + N])
    if name != "queue":
        np.testing.assert_allclose(
            loss(a[order], b[order], reduction="none"), each[there], rtol=1e-4
        )
    with pytest.raises(ValueError, match="'sum'"):
        loss(a, b, reduction="sum")
