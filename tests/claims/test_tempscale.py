"""TempScale's recipe on a small random encoder and sentences of numbered words."""

from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.retrieval import contriever_pydocs_random, tempscale_pydocs
from experiments.common.texts import TextModel
from experiments.retrieval import (
    tempscale,
    tempscale_layers,
    tempscale_methods,
    tempscale_readings,
)
from experiments.retrieval.tempscale_methods import METHODS
from rml.errors import UserError
from rml.retrieval import temper
from rml.training import RunDirectory
from tests.texts import untrained_run, write_beir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty-four documents of 4 to 30 words, each asked for by its first three."""
    folder, rng = tmp_path_factory.mktemp("beir"), np.random.default_rng(0)
    texts = [[f"w{n}" for n in rng.integers(0, 60, 4 + i % 27)] for i in range(64)]
    write_beir(
        folder, [" ".join(t) for t in texts], [" ".join(t[:3]) for t in texts], "dev", "test"
    )
    return folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    """The config on the encoder of a run that is not trained."""
    own = contriever_pydocs_random.get_config()
    own.data.update(dict(name=f"beir:{folder}", train="test"))
    own.tokens.update(dict(vocabulary=400, max_length=78, positions=80))
    own.model.update(dict(width=16, depth=2, heads=2, mlp=32))
    own.queue.size = 16

    def sharpened(state):  # as drawn, attention is uniform at any temperature
        return state.replace(
            params=jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, state.params)
        )

    path = tmp_path_factory.mktemp("runs") / "texts"
    untrained_run(path, own, sharpened)
    config = tempscale_pydocs.get_config()
    config.model.update(dict(name="run", run=str(path)))
    config.data.update(dict(name=f"beir:{folder}", validation="dev", test="test", tasks=("",)))
    config.documents.update(dict(validation=30, test=32))  # batches of one shape
    config.candidates.update(
        dict(
            tempscale=(0.5, 1.0),
            last_layer=(0.5, 1.0),
            log_length=(8.0, 20.0),
            chunks=(8, 80),
            whitening=(0.5, 1.0),
        )
    )
    config.update(
        dict(short=12, long=20, edges=(4, 12, 24, 81), cuts=(8, 16), cut_texts=8, least=2)
    )
    config.timed.update(dict(texts=2, repeats=3))
    config.evaluation.update(dict(max_length=80, query_length=12))
    return config


@pytest.mark.slow
def test_it_chooses_on_validation_and_measures_what_it_says(config, tmp_path):
    run = RunDirectory(tmp_path / "run", config.to_dict())
    found = tempscale.run(config, run)
    for name in METHODS:
        assert found[f"tries_{name}"] == 2
        assert found[f"at_edge_{name}"] == 1  # of two values each is an end
        assert found[f"chosen_{name}"] in config.candidates[name]
        gain = found["long_ndcg_tempscale"] - found[f"long_ndcg_{name}"]
        if name != "tempscale":
            assert found[f"long_over_{name}"] == pytest.approx(gain, abs=1e-6)
    gain = found["long_ndcg_tempscale"] - found["long_ndcg_as_it_is"]
    assert found["long_gain"] == pytest.approx(gain, abs=1e-6)
    if found["chosen_tempscale"] == 1:
        assert gain == 0
    assert found["gap_lowest"] != found["gap"]
    assert found["time_ratio"] > 0
    for name in ("filter_slope", "filter_slope_gain"):
        layers = [found[f"{name}_layer_{i}"] for i in (1, 2)]
        assert layers[0] != layers[1]
    assert found["filter_slope_flattest"] == max(found[f"filter_slope_layer_{i}"] for i in (1, 2))
    assert found["filter_slope_gain_least"] == min(layers)
    assert found["long_queries"] + found["short_queries"] <= 32
    assert np.isfinite(list(found.values())).all()
    assert {path.name for path in (run.path / "figures").glob("*.png")} == set(tempscale.CAPTIONS)
    claimed = {name for claim in tempscale.CLAIMS for name in (claim.metric, claim.null)}
    assert claimed <= set(found)
    run.close()


@pytest.mark.slow
def test_a_sample_has_the_queries_of_its_documents(config):
    model = TextModel(config)
    data = tempscale_methods.sample(config, model, "test")
    assert len(data.documents) == len(set(data.documents)) == len(data.queries) == 32
    for query, document, grade in zip(*data.answers, strict=True):
        assert data.documents[document].startswith(data.queries[query])
        assert grade == 1
    lengths = tempscale_methods.answer_lengths(model, data)
    words = [len(data.documents[document].split()) for document in data.answers.document]
    assert np.corrcoef(lengths[data.answers.query], words)[0, 1] > 0.99
    config = config.copy_and_resolve_references()
    assert tempscale_methods.sample(config, model, "test").document_ids == data.document_ids
    config.seed = 1
    assert tempscale_methods.sample(config, model, "test").document_ids != data.document_ids
    own = tempscale_methods.sample(config, model, "validation")
    others = tempscale_methods.sample(config, model, "test", without=own.document_ids)
    assert len(others.documents) == 32
    assert not set(others.document_ids) & set(own.document_ids)


class Given:
    """Stands for `Embedders` where texts are already vectors."""

    options = SimpleNamespace(query_length=7)
    asked: ClassVar[list] = []

    def __call__(self, name, value, texts, longest=None):
        self.asked.append((name, value, longest))
        rows = np.array([t.split() if isinstance(t, str) else t for t in texts], np.float32)
        return jnp.asarray(rows) * jnp.asarray([1.0, value, 1.0])[: rows.shape[1]]


@pytest.mark.slow
def test_a_choice_counts_wanted_queries_alone():
    """Both queries find the first document first, which answers the second one alone."""
    documents = ["2 1", "1 1"]
    queries, wanted = ["1 1", "0.5 0.5"], np.array([False, True])
    data = SimpleNamespace(
        queries=queries, documents=documents, answers=(np.array([0, 1]), np.array([1, 0]), [1, 1])
    )
    data.answers = tuple(map(np.asarray, data.answers))
    found = tempscale_methods.choose(Given(), "tempscale", (3.0, 2.0), data, wanted, None)
    assert found.temperature == 3.0
    np.testing.assert_allclose(found.ndcg, [1.0, 1.0])
    other = tempscale_methods.choose(Given(), "tempscale", (3.0, 2.0), data, ~wanted, None)
    np.testing.assert_allclose(other.ndcg, 1 / np.log2(3), rtol=1e-6)
    assert set(Given.asked) == {("tempscale", v, n) for v in (3.0, 2.0) for n in (7, None)}


@pytest.mark.slow
def test_the_last_layer_alone_has_the_temperature(config):
    model = TextModel(config)
    variables, row = model.init(jax.random.key(0)), jnp.arange(5, 12)[None]
    variables = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, variables)
    mask = jnp.ones(row.shape, bool)
    expected = temper(model.module, jnp.asarray([1.0, 0.4])).apply(variables, row, mask)
    found = tempscale_methods.temper_last(model.module, 0.4).apply(variables, row, mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - model.module.apply(variables, row, mask)).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("alike", ["longest", "shortest"])
def test_the_gap_shrinks_by_a_share_of_what_it_was(alike, monkeypatch):
    # Two documents are fewer than a bin needs.
    lengths, rng = np.repeat([3, 5, 15, 30, 90], [2, 8, 8, 8, 2]), np.random.default_rng(0)
    noise = rng.standard_normal((28, 3))
    share = (lengths if alike == "longest" else lengths[::-1])[:, None] / 10
    plain, tempered, inverse = noise + share, noise + share / 3, noise + share * 2

    def embed(name, value, texts, longest=0):
        return jnp.asarray(noise[: len(texts)] + value + longest / 10)

    def gap(x, lengths):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        groups = [(x @ x.T)[np.ix_(own, own)] for own in (lengths == 30, lengths == 5)]
        longest, shortest = (own[~np.eye(len(own), dtype=bool)].mean() for own in groups)
        return longest - shortest

    embed.model = None
    monkeypatch.setattr(tempscale_readings, "text_lengths", lambda model, texts: lengths)
    monkeypatch.setattr(tempscale_readings.figures, "curves", lambda *_: None)
    found = tempscale_readings.measure_collapse(
        SimpleNamespace(
            seed=1, edges=(2, 4, 12, 24, 81, 99), least=8, cuts=(8, 16),
            candidates={"tempscale": (0.5, 1.0)},
        ),
        SimpleNamespace(figure=lambda name: None), embed, SimpleNamespace(documents=["w"] * 28),
        ["w"] * 8,
        *(tempscale_methods.Vectors(None, jnp.asarray(x)) for x in (plain, tempered, inverse)),
    )  # fmt: skip
    before, after = gap(plain, lengths), gap(tempered, lengths)
    assert (before > 0) == (alike == "longest")
    assert abs(before - after) > 0.1
    assert found["gap"] == pytest.approx(before, abs=1e-5)
    assert found["gap_tempered"] == pytest.approx(after, abs=1e-5)
    assert found["gap_shrinks"] == pytest.approx((before - after) / abs(before), abs=1e-4)
    smoothed = gap(inverse, lengths)
    assert abs(before - smoothed) > 0.05
    shrinks = (before - smoothed) / abs(before)
    assert found["gap_shrinks_inverse"] == pytest.approx(shrinks, abs=1e-4)


def test_no_bars_are_drawn_between_short_and_long_where_they_are_one(monkeypatch):
    drawn = []
    monkeypatch.setattr(tempscale_readings.figures, "bars", lambda *args, **_: drawn.append(args))
    lengths = np.array([3, 9, 11, 11, 12, 30])
    scores = {"as it is": np.array([0.1, 0.3, 0.4, 0.6, 0.6, 1.0])}
    for long in (10, 12):
        config = SimpleNamespace(short=10, long=long)
        tempscale_readings.draw_ndcg(
            config, SimpleNamespace(figure=lambda name: name), scores, lengths
        )
    assert [names for _, names, *_ in drawn] == [
        ["below 10 tokens", "10 or more"],
        ["below 10 tokens", "to 12", "12 or more"],
    ]
    np.testing.assert_allclose(drawn[1][2]["as it is"], [0.2, 0.5, 0.8])


def test_slopes_are_of_layers_and_of_their_mean():
    """Rates are powers of the length, of a text and a layer each."""
    cuts = np.array([8.0, 16.0, 32.0])
    powers = np.array([[-0.5, 0.1], [-0.7, -0.2], [-0.3, 0.4], [-0.5, -0.3]])
    plain = cuts[None, :, None] ** powers[:, None]
    share = np.array([0.1, 0.7, 1.2, 2.0])
    lowest = cuts[None, :, None] ** (powers + np.outer(share, [0.3, -0.1]))[:, None]
    found = tempscale_layers.slopes(cuts, plain, lowest, 0)
    assert found["filter_slope_layer_1"] == pytest.approx(-0.5)
    assert found["filter_slope_layer_2"] == pytest.approx(0.0, abs=1e-9)
    assert found["filter_slope_flattest"] == found["filter_slope_layer_2"]
    assert found["filter_slope_gain_layer_1"] == pytest.approx(0.3)
    assert found["filter_slope_gain_least"] == pytest.approx(-0.1)
    # Two of the four texts have their rates exchanged, in both layers.
    signs = np.random.default_rng([0, 1]).permutation([1, -1, 1, -1])
    least = min(by * np.mean(share * signs) for by in (0.3, -0.1))
    assert abs(least) > 0.01
    assert found["filter_slope_gain_least_exchanged"] == pytest.approx(least)
    logs = np.log(cuts / 16)
    mean = np.log(plain.mean(-1)) @ logs / (logs @ logs)
    assert found["filter_slope"] == pytest.approx(mean.mean())
    gains = np.log(lowest.mean(-1)) @ logs / (logs @ logs) - mean
    assert found["filter_slope_gain"] == pytest.approx(gains.mean())
    assert found["filter_slope_gain_exchanged"] == pytest.approx((gains * signs).mean())
    own = powers[:, 1]
    half = stats.t.ppf(0.975, 3) * own.std(ddof=1) / 2
    assert found["filter_slope_flattest_high"] == pytest.approx(own.mean() + half)


@pytest.mark.slow
def test_whitening_is_fitted_on_other_texts():
    rng = np.random.default_rng(0)
    fit, own = (
        tempscale_methods.Vectors(
            *(
                jnp.asarray(rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + i, jnp.float32)
                for i in (1, 3)
            )
        )
        for _ in range(2)
    )
    found = tempscale_methods.changed(Given(), "whitening", 0.5, own, fit)
    # The map is that of the other documents, half of the way to a covariance of one variance.
    values, turned = np.linalg.eigh(np.cov(np.asarray(fit.documents, float).T, bias=True))
    matrix = turned / np.sqrt(0.5 * values + 0.5 * values.mean())
    for mine, other, vectors in zip(own, fit, found, strict=True):
        mapped = np.asarray(mine - other.mean(0)) @ matrix
        expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates.chunks": (8,)}, "expected equally many"),
        ({"model.name": "bert"}, "untrained"),
        ({"documents.validation": 65}, "expected at most the 64"),
        ({"documents.test": 35}, "expected at most the 34"),
        ({"cuts": (8, 81)}, "sampled documents have the 81 tokens"),
        ({"long": 75}, "0 queries of the 30 .*documents.validation have .* of 75 tokens or more"),
        ({"short": 2}, "0 queries of the 32 .*documents.test have .* below 2 tokens"),
        ({"least": 31}, "of the 30 documents of documents.validation .*expected least=31 or more"),
        ({"edges": (4, 5, 81)}, "two or more with least=2 each"),
    ],
)
def test_wrong_options_are_named(config, tmp_path, change, message):
    config = config.copy_and_resolve_references()
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict(change)
    run = RunDirectory(tmp_path / "run", config.to_dict())
    with pytest.raises(UserError, match=message):
        tempscale.run(config, run)
    run.close()
