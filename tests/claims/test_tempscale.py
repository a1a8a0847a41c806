"""TempScale's recipe on a small random encoder and sentences of numbered words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.retrieval import contriever_pydocs_random, tempscale_pydocs
from experiments.common.texts import TextModel
from experiments.retrieval import tempscale, tempscale_methods
from experiments.retrieval.tempscale_methods import METHODS
from rml.errors import UserError
from rml.training import RunDirectory
from tests.texts import untrained_run, write_beir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty-eight documents of 4 to 30 words, each asked for by its first three."""
    folder, rng = tmp_path_factory.mktemp("beir"), np.random.default_rng(0)
    texts = [[f"w{n}" for n in rng.integers(0, 60, 4 + i % 27)] for i in range(48)]
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
    config.documents.update(dict(validation=30, test=40))
    config.candidates.update(
        dict(tempscale=(0.5, 1.0), log_length=(8.0, 20.0), chunks=(8, 80), whitening=(0.5, 1.0))
    )
    config.update(dict(short=12, long=20, edges=(4, 12, 24, 81), cuts=(8, 16), cut_texts=8))
    config.evaluation.update(dict(max_length=80, query_length=12))
    return config


@pytest.mark.slow
def test_it_chooses_on_validation_and_measures_what_it_says(config, tmp_path):
    run = RunDirectory(tmp_path / "run", config.to_dict())
    found = tempscale.run(config, run)
    for name in METHODS:
        assert found[f"tries_{name}"] == 2
        assert found[f"chosen_{name}"] in config.candidates[name]
        gain = found["long_ndcg_tempscale"] - found[f"long_ndcg_{name}"]
        if name != "tempscale":
            assert found[f"long_over_{name}"] == pytest.approx(gain, abs=1e-6)
    gain = found["long_ndcg_tempscale"] - found["long_ndcg_as_it_is"]
    assert found["long_gain"] == pytest.approx(gain, abs=1e-6)
    if found["chosen_tempscale"] == 1:
        assert gain == 0
    assert found["gap_lowest"] != found["gap"]
    assert found["long_queries"] + found["short_queries"] <= 40
    assert np.isfinite(list(found.values())).all()
    assert {path.name for path in (run.path / "figures").glob("*.png")} == set(tempscale.CAPTIONS)
    claimed = {name for claim in tempscale.CLAIMS for name in (claim.metric, claim.null)}
    assert claimed <= set(found)
    run.close()


@pytest.mark.slow
def test_a_sample_has_the_queries_of_its_documents(config):
    model = TextModel(config)
    data = tempscale_methods.sample(config, model, "test")
    assert len(data.documents) == len(set(data.documents)) == len(data.queries) == 40
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


def test_whitening_is_fitted_on_other_texts():
    rng = np.random.default_rng(0)
    fit, own = (
        tempscale_methods.Vectors(
            *(jnp.asarray(rng.normal(size=(50, 3)) + i, jnp.float32) for i in (1, 3))
        )
        for _ in range(2)
    )
    found = tempscale_methods.changed(None, "whitening", 1.0, None, own, fit)
    for mine, other, vectors in zip(own, fit, found, strict=True):
        centred = np.asarray(mine - other.mean(0))
        expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates.chunks": (8,)}, "expected equally many"),
        ({"model.name": "bert"}, "untrained"),
        ({"documents.test": 49}, "expected at most the 48"),
        ({"cuts": (8, 81)}, "sampled documents have the 81 tokens"),
    ],
)
def test_wrong_options_are_named(config, tmp_path, change, message):
    config = config.copy_and_resolve_references()
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict(change)
    model = TextModel(config) if config.model.name == "run" else None

    def prepare():
        tempscale.check(config)
        data = tempscale_methods.sample(config, model, "test")
        tempscale_methods.long_texts(config, model, data)

    with pytest.raises(UserError, match=message):
        prepare()
