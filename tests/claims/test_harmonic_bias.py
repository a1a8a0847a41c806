"""The recipe on logits that fall with distance, on tiny models."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import harmonic_bias as config_file
from experiments.attention import harmonic_bias, harmonic_figures
from experiments.common import small_lm
from rml.attention import distance_laws
from rml.errors import UserError

SMALL = {
    "text.length": 16, "text.vocabulary": 300, "model.width": 16, "model.depth": 1,
    "model.heads": 2, "model.kv_heads": 2, "model.mlp": 16, "long.windows": 3,
}  # fmt: skip


@pytest.fixture
def untrained(monkeypatch):
    """One random model in the place of every trained one, words in that of texts."""

    def random(config, run, text, attentions):
        first = small_lm.language_model(config, next(iter(attentions.values())))
        made = nn.meta.unbox(first.init(jax.random.key(0), jnp.zeros((1, 4), int)))["params"]
        made = jax.tree.map(lambda leaf: 8 * leaf, made)  # so that heads tell places apart
        return {name: [made] for name in attentions}

    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in row) for row in rng.integers(0, 30, (6, 200))]
    monkeypatch.setattr(small_lm, "trained", random)
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/attention/harmonic_bias.py", SMALL)
    assert len(holds) == len(harmonic_bias.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # Within its window a model reads what it reads without one.
    assert metrics["nats_rope_window_1x"] == pytest.approx(metrics["nats_rope_1x"], abs=1e-5)
    # Rotation is off in models without positions, and laws differ.
    names = ("rope", "nope", "alibi", "bias", "factor")
    assert len({round(metrics[f"nats_{name}_8x"], 6) for name in names}) == len(names)
    assert metrics["gain_bias_8x"] == pytest.approx(
        metrics["nats_rope_8x"] - metrics["nats_bias_8x"], abs=1e-5
    )
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(harmonic_bias.CAPTIONS)


def test_laws_are_drawn_as_strong_as_models_have_them(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        harmonic_figures.figures, "curves", lambda path, series, *_: drawn.update(series)
    )
    compared = harmonic_bias.variants(0.25)
    harmonic_figures.of_laws(SimpleNamespace(figure=lambda name: name), compared, 4, 64)
    bias = distance_laws(4, form="bias", slopes="harmonic", strength=0.25).bias
    factor = distance_laws(4, form="factor", slopes="harmonic", strength=0.25).factor
    alibi = distance_laws(4, form="alibi", slopes="geometric").bias
    laws = {"harmonic bias": bias, "harmonic factor": factor, "ALiBi": alibi}
    for title, law in laws.items():
        for head in (0, 3):
            x, y = drawn[f"{title}, head {head + 1}"]
            at = np.rint(2**x).astype(int) - 1
            own = np.asarray(law(jnp.asarray(at), jnp.zeros(1, jnp.int32)))[head, :, 0]
            np.testing.assert_allclose(y, own, rtol=1e-6)


def test_lengths_are_compared_in_their_last_half():
    """Of tokens 1 to 127 with nats of their places, 16 a training length."""
    nats = np.broadcast_to(np.arange(1.0, 128.0), (2, 3, 127))
    np.testing.assert_allclose(harmonic_bias.at(nats, 1, 16), np.arange(8, 16).mean())
    np.testing.assert_allclose(harmonic_bias.at(nats, 8, 16), np.arange(64, 128).mean())
    variants = (*harmonic_bias.variants(1.0), "rope_window")
    found = {name: nats + 0.1 * i for i, name in enumerate(variants)}
    metrics = harmonic_bias.summarised(found, 16)
    assert metrics["gain_bias_4x"] == pytest.approx(-0.4)
    assert metrics["extra_bias_8x"] == pytest.approx(0.0)
    assert metrics["bias_over_alibi_8x"] == pytest.approx(np.exp(0.2) - 1)
    assert metrics["bias_over_window_8x"] == pytest.approx(-0.4)


def test_a_form_is_held_against_itself_with_geometric_slopes():
    gains = [c for c in harmonic_bias.CLAIMS if c.metric.startswith(("gain_", "extra_"))]
    assert [claim.null for claim in gains] == [
        "_geometric_".join(claim.metric.rsplit("_", 1)) for claim in gains
    ]


def test_slopes_that_do_not_fall_are_refused():
    config = config_file.get_config()
    config.long.strength = 0.0
    with pytest.raises(UserError, match=r"strength is 0\.0, expected above 0"):
        harmonic_bias.check(config)
