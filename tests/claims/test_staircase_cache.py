"""The recipe on a cache that loses bits with age, on a tiny decoder."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import staircase_cache as config_file
from experiments.attention import staircase_cache as recipe
from rml.errors import UserError
from rml.models import Llama

SMALL = {
    "length": 64, "documents": 2, "call": 8, "staircase.chunk": 8, "staircase.group": 4,
    "measured_layers": (0, 1),
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """A random decoder in the place of SmolLM2, random tokens in that of speeches."""
    module = Llama(vocabulary=29, positions=64, width=16, depth=2, heads=2, mlp=16, tied=True)
    variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), int)))
    variables = jax.tree.map(lambda leaf: 4 * leaf, variables)
    loaded = SimpleNamespace(module=module, variables=variables, tokenizer=None)
    tokens = np.random.default_rng(0).integers(0, 29, (3, 64)).astype(np.int32)
    monkeypatch.setattr(recipe.pretrained, "load", lambda name: loaded)
    monkeypatch.setattr(recipe, "speeches", lambda *_: tokens)
    return module


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(tiny, measure, tmp_path):
    metrics, holds = measure("configs/attention/staircase_cache.py", SMALL)
    assert len(holds) == len(recipe.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # The null of what steps gain is a cache of as many bytes that has none.
    assert metrics["gain_of_residual"] == pytest.approx(
        metrics["lost_short"] - metrics["lost_uniform"], abs=1e-6
    )
    assert abs(metrics["lost_short"]) > abs(metrics["lost_four"])
    assert abs(metrics["lost_four"]) > abs(metrics["lost_eight"])
    # Levels of 8, 4 and 2 bits are nested; those of 3 bits are not among them.
    assert metrics["error_of_steps"] == pytest.approx(1.0, abs=0.03)
    assert metrics["error_of_steps_apart"] > metrics["error_of_steps"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(recipe.CAPTIONS)


def test_uniform_caches_have_the_bytes_of_the_staircase():
    """With the sizes of SmolLM2-135M, whose module is never made."""
    module = SimpleNamespace(head_shape=lambda: (3, 64), depth=30)
    config = config_file.get_config()
    caches = recipe.variants(config, module)
    sizes = {name: recipe.mean_bytes(config, module, own) for name, own in caches.items()}
    assert sizes["uniform"] == pytest.approx(sizes["staircase"], rel=0.01)
    assert sizes["uniform_four"] == pytest.approx(sizes["staircase"], rel=0.01)
    assert caches["uniform"].chunk > caches["staircase"].chunk > caches["uniform_four"].chunk
    assert [caches[name].bits for name in ("uniform", "uniform_four")] == [(16, 2), (16, 4)]
    assert [caches[name].bits for name in ("short", "four", "eight")] == [(16, 2), (16, 4), (16, 8)]
    assert sizes["short"] < sizes["staircase"] < sizes["four"] < sizes["eight"]
    # 16 bits of 1024, 1056, ..., 2016 tokens: keys and values of 30 layers and 3 heads.
    assert recipe.whole_bytes(config, module) == 30 * 3 * 2 * 64 * 2 * 1520


def test_steps_are_claimed_beside_as_many_bytes_alone():
    """Beside fewer bytes any use of the others is a gain, such as a longer residual."""
    config = config_file.get_config()
    names = ("exact", "staircase", "uniform", "short", "uniform_four", "four", "eight")
    nats = {name: np.full((2, 2047), 0.01 * i**2) for i, name in enumerate(names)}
    # Before a chunk is whole nothing is quantised: a null of these tokens could be nothing but 0.
    for own in nats.values():
        own[:, : config.staircase.chunk - 1] = 0.0
    sizes = {name: 1.0 + i for i, name in enumerate(names[1:])}
    metrics = recipe.summarised(config, nats, sizes, 10.0)
    assert metrics["gain_of_steps"] == pytest.approx(0.09 - 0.01)
    assert metrics["gain_of_residual"] == pytest.approx(0.09 - 0.04)
    assert metrics["gain_over_uniform"] == pytest.approx(0.04 - 0.01)
    assert metrics["gain_over_uniform_four"] == pytest.approx(0.16 - 0.01)
    assert metrics["uniform_over_uniform_four"] == pytest.approx(0.16 - 0.04)
    # Sizes are 1 of the staircase, 2 of uniform and 4 of four bits with a short residual.
    assert metrics["bytes_apart_uniform_four"] == pytest.approx(3.0)
    claimed = {claim.metric for claim in recipe.CLAIMS}
    assert "gain_over_uniform_four" in claimed
    assert "gain_of_steps" not in claimed


def test_a_staircase_without_steps_is_refused():
    config = config_file.get_config()
    config.staircase.bits = (16, 2)
    with pytest.raises(UserError, match="expected three or more that end below 4"):
        recipe.check(config)
