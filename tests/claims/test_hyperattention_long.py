"""The recipe of long layers on a small random model; `make claims` measures a trained one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import hyperattention_long as config_file
from experiments.attention import approximation, hyperattention_long, long_halves
from experiments.attention.layerwise import Decoder
from experiments.attention.long_halves import Method, exact_halves, log_errors, method_of
from rml.attention import hardness
from rml.attention.hyper_samples import HyperSettings
from rml.errors import UserError
from tests.claims.drawn_models import drawn_decoder
from tests.system.two_steps import override

SMALL = {
    "lengths": (32, 64, 128), "trained": 64, "validated": 64, "documents": 2,
    "measured_layers": (0, 2), "seen": 12, "apart": 2, "planes": 3, "draws": 2,
    "tries.uniform": (0.5,), "tries.value_norm": ((0.5, 1.0),), "tries.window": (2,),
    "tries.sinks": ((0.5, "uniform"),), "tries.unsorted": (("value_norm", 10.0),),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return drawn_decoder()


def texts(config, part, tokenizer, length):
    return np.random.default_rng(0).integers(0, 32, (3, length)).astype(np.int32)


@pytest.fixture(scope="module")
def layer():
    """Queries, keys and values of a layer whose queries look at the first key above all."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(h, 75, 8)).astype(np.float32) for h in (4, 2, 2))
    q += 2 * np.repeat(k[:, :1], 2, axis=0)
    k[:, 1:] *= 0.4
    return tuple(map(jnp.asarray, (q, k, v)))


@pytest.mark.slow
def test_a_block_of_queries_at_a_time_has_the_whole_attention(layer):
    wanted = approximation.halves(*layer)
    for block in (8, 37, 64):  # of 37 queries
        part, alpha = exact_halves(*layer, first=3, block=block)
        for own, other in zip(part, wanted, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-5)
        np.testing.assert_allclose(alpha[0], approximation.alphas(wanted), rtol=1e-5)
        # Without the first keys their shares fall to the others.
        key = jnp.repeat(part.key[:, None, 3:], 2, axis=1)
        np.testing.assert_allclose(alpha[1], hardness(part.query, key).alpha.ravel(), rtol=1e-5)
    assert (alpha[1] < alpha[0] / 2).all()


@pytest.mark.slow
def test_errors_are_those_of_all_keys_and_of_keys_seen_apart(layer):
    part, _ = exact_halves(*layer, first=2)
    rngs, keys = jax.random.split(jax.random.key(0), 3), 8
    settings = HyperSettings(planes=2, block=5, samples=4)
    found = log_errors(part, rngs, method=Method(settings), keys=keys)
    wanted = approximation.errors(part, rngs, settings=settings)
    np.testing.assert_allclose(found, np.log(wanted), atol=1e-4)
    window = log_errors(part, rngs, method=Method(None, 2), keys=keys)
    own = approximation.errors_of_recent(part, keys=keys, sinks=2)
    np.testing.assert_allclose(window, np.log(np.tile(own, (3, 1))), rtol=1e-5)
    other = approximation.errors_of_recent(part, keys=keys, sinks=3)
    assert np.abs(np.log(own) - np.log(other)).min() > 1e-3
    apart, middle = (
        log_errors(part, rngs, method=Method(settings, 1, how), keys=keys) for how in (False, True)
    )
    # The key that queries look at is seen apart, another one is not it.
    assert apart.mean() < found.mean() - 0.3
    assert apart.mean() < middle.mean() - 0.3
    # Where one block has all other keys, attention is exact.
    whole = Method(HyperSettings(planes=2, block=40, samples=0), 3, middle=True)
    assert log_errors(part, rngs, method=whole, keys=keys).max() < np.log(1e-5)


@pytest.mark.slow
def test_beginnings_have_the_projections_of_the_whole_text(model):
    decoder, text = Decoder(model.module, model.variables), texts(None, "", None, 64)[0]
    whole, short = decoder.captured(text, (0, 2)), decoder.captured(text[:24], (0, 2))
    exact = decoder.exact(text, capture=(2,)).captured
    assert list(whole) == [0, 2]
    for i in (0, 2):
        for own, other in zip(whole[i], short[i], strict=True):
            np.testing.assert_allclose(own[:, :24], other, atol=1e-5)
    for own, other in zip(whole[2], exact[2], strict=True):
        np.testing.assert_array_equal(own, other)


def test_all_methods_see_equally_many_keys():
    config = config_file.get_config()
    hyper = {name: own for name, own in config.tries.items() if name != "window"}
    for name, tries in hyper.items():
        for choice in tries:
            settings, apart, _ = method_of(config, name, choice)
            block = settings.block if settings.planes else 0
            assert block + settings.samples + apart == 512
    assert method_of(config, "window", 16) == Method(None, 16)
    own = method_of(config, "value_norm", (0.25, 2.0)).settings
    assert (own.block, own.samples, own.sampling, own.cap) == (128, 384, "value_norm", 2.0)
    assert own.planes == 7
    sinks = method_of(config, "sinks", (0.75, "value_norm"))
    assert (sinks.settings.block, sinks.settings.sampling, sinks.apart) == (381, "value_norm", 4)
    unsorted = method_of(config, "unsorted", ("value_norm", 9.0)).settings
    assert (unsorted.planes, unsorted.sampling, unsorted.kappa) == (0, "value_norm", 9.0)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(model, measure, monkeypatch, tmp_path):
    monkeypatch.setattr(hyperattention_long.pretrained, "load", lambda name: model)
    monkeypatch.setattr(hyperattention_long, "speeches", texts)
    drawn = []

    def errors(part, rngs, **options):
        drawn.append(jax.random.key_data(rngs).tobytes())
        return log_errors(part, rngs, **options)

    monkeypatch.setattr(hyperattention_long, "log_errors", errors)
    metrics, holds = measure("configs/attention/hyperattention_long.py", SMALL)
    assert len(holds) == len(hyperattention_long.CLAIMS)
    # Methods share their draws; two layers on validation, and two texts of three lengths do not.
    assert len(set(drawn)) == 2 + 2 * 3 * 2
    assert np.isfinite(list(metrics.values())).all()
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(hyperattention_long.CAPTIONS)
    # Of two lengths that the model was trained on, not of the third.
    for name in hyperattention_long.NAMES:
        short, long = (metrics[f"error_{name}_{n}"] for n in (32, 64))
        assert metrics[f"power_{name}"] == pytest.approx(np.log2(long / short), abs=1e-6)


@pytest.mark.slow
def test_gains_are_shares_of_the_other_error_at_the_longest_trained_length():
    config = override(config_file.get_config(), SMALL)
    rng = np.random.default_rng(0)
    names = (*hyperattention_long.NAMES, "other")
    logs = {name: rng.normal(size=(2, 3, 2, 2, 4)) for name in names}
    for i, name in enumerate(names):
        logs[name][:, 1] = -i + np.arange(2)[:, None]  # by draw
    alpha = {"all": np.full((2, 3, 2, 4), 5.0), "without_first": np.full((2, 3, 2, 4), 9.0)}
    alpha["without_first"][:, :, 0] = 2.0
    found = hyperattention_long.summarised(config, logs, alpha)
    uniform, norm, unsorted, window, sinks, other = range(6)
    assert names == ("uniform", "value_norm", "unsorted", "window", "sinks", "other")
    pairs = {
        "gain_of_norms": (uniform, norm), "gain_over_samples": (unsorted, uniform),
        "gain_over_window": (window, uniform), "gain_of_sinks": (uniform, sinks),
        "gain_of_samples_over_window": (window, unsorted), "gain_of_other_keys": (uniform, other),
        "gain_of_sinks_over_window": (window, sinks),
    }  # fmt: skip
    for name, (before, after) in pairs.items():
        assert found[name] == pytest.approx(1 - np.exp(before - after), rel=1e-5)
    assert found["gain_between_draws"] == pytest.approx(1 - np.exp(1), rel=1e-5)
    # Roots of 32 keys: 5 is below, of the other every second layer.
    assert found["alpha_share_below_root_all"] == 1
    assert found["alpha_share_below_root_without_first"] == 0.5
    assert found["alpha_power_all"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (4096, 2048)}, "expected to ascend"),
        ({"trained": 2048}, "two of at most trained=2048"),
        ({"seen": 1021}, "seen is 1021 and apart 4, expected at most 1024 together"),
        ({"tries": {"window": (1, 4)}}, "expected equally many"),
        ({"tries": {"window": (1, 4, 16, 64, 128, 512)}}, "tries.window has 512, expected it to"),
        ({"tries": {"uniform": (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)}}, "tries.uniform has 1.0, expected"),
        (
            {"tries": {"unsorted": (("norm", 1.0),) * 6}},
            r"tries.unsorted has \('norm', 1.0\): unknown sampling",
        ),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        hyperattention_long.check(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 4}, "documents is 4, expected at most 3: the test speeches of 128 tokens"),
        ({"measured_layers": (0, 4)}, r"measured_layers is \(0, 4\) and model.name 'smollm2'"),
    ],
)
def test_what_a_model_or_data_does_not_have_is_named(model, monkeypatch, changes, message):
    monkeypatch.setattr(hyperattention_long.pretrained, "load", lambda name: model)
    monkeypatch.setattr(hyperattention_long, "speeches", texts)
    config = override(config_file.get_config(), {**SMALL, **changes})
    with pytest.raises(UserError, match=message):
        hyperattention_long.run(config, None)


def test_the_module_of_long_halves_has_no_other_peak_than_a_block():
    """Memory that is planned grows with the tokens, not with their square."""
    planned = []
    for n in (2048, 4096):
        of = [jax.ShapeDtypeStruct((h, n, 8), jnp.float32) for h in (4, 2, 2)]
        compiled = long_halves.exact_halves.lower(*of, first=1).compile()
        planned.append(compiled.memory_analysis().temp_size_in_bytes)
    assert planned[1] < 2.2 * planned[0]
