"""The recipe on searches of hyper-parameters, on a space of which everything is known."""

import numpy as np
import pytest

from configs.attention import cross_entropy_search as config_file
from experiments.attention import cross_entropy_scores
from experiments.attention import cross_entropy_search as recipe
from experiments.ranges import checked_experiment
from rml.errors import UserError

SMALL = {"searches": 8, "search.draws": 24, "search.rounds": 6}


def separable(config, settings):
    """Scores with one best setting."""
    weights = {"window": 0.1, "negatives": 0.05, "width": 0.02, "rate": 10.0, "power": 0.5}
    best = {"window": 5, "negatives": 3, "width": 16, "rate": 0.01, "power": 0.75}
    return np.array([
        -sum(weight * abs(own[name] - best[name]) for name, weight in weights.items())
        + own["subsample"] for own in settings
    ])  # fmt: skip


@pytest.mark.slow
def test_searches_of_a_known_space_measure_every_claim(measure, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "scored", separable)
    metrics, holds = measure("configs/attention/cross_entropy_search.py", SMALL)
    assert len(holds) == len(recipe.CLAIMS)
    assert metrics["regret_search"] < metrics["regret_random"]
    assert np.isfinite(list(metrics.values())).all()
    assert (metrics["settings"], metrics["runs"], metrics["runs_grid"]) == (972, 144, 64)
    assert metrics["best_width"] == 16
    assert metrics["best_subsample"] == 0.01
    assert metrics["nats_best"] == pytest.approx(-0.01)
    assert metrics["entropy_share"] < metrics["entropy_share_random_scores"] < 0.9
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(recipe.CAPTIONS)


def test_laws_of_random_scores_move_by_chance_and_towards_no_value():
    config = config_file.get_config()
    config.searches = 60
    found = recipe.of_random_scores(config, recipe.check(config))
    assert len({own.scores[0] for own in found}) == 60
    # Each search loses entropy, which laws that stay where they are do not.
    assert recipe.entropy_share(found[:1]) < 0.9
    for name, law in found[0].laws.items():
        mean = np.mean([own.laws[name] for own in found], axis=0)
        np.testing.assert_allclose(mean, np.full(len(law), 1 / len(law)), atol=0.15)
    config.seed = 1
    assert recipe.of_random_scores(config, recipe.check(config))[0].scores != found[0].scores
    claim = next(own for own in recipe.CLAIMS if own.metric == "entropy_share")
    assert claim.null == "entropy_share_random_scores"


@pytest.mark.slow
def test_every_setting_is_trained_once_whatever_stands_beside_it(monkeypatch):
    config = config_file.get_config()
    config.update(
        {"vocabulary": 20, "train": {"steps": 3, "batch": 8, "together": 4}, "score": {"pairs": 16}}
    )
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 30, 200))]
    monkeypatch.setattr(cross_entropy_scores.data, "load_documents", lambda *_, **__: texts)
    values = {"window": 2, "negatives": 6, "width": 8, "subsample": 1e-2, "power": 0.75}
    settings = [values | {"rate": rate} for rate in (0.001, 0.1, 0.01, 0.3, 0.05)]
    scores = recipe.scored(config, settings)
    assert scores.shape == (5,)
    assert len(set(scores.tolist())) == 5
    alone = recipe.scored(config, settings[4:])
    assert alone[0] == pytest.approx(scores[4], abs=1e-5)


@pytest.mark.parametrize("searches", [0, 1])
def test_searches_without_an_interval_are_refused(searches):
    config = config_file.get_config()
    config.searches = searches
    with pytest.raises(UserError, match=f"searches is {searches}, expected .* of at least 2"):
        checked_experiment(config)


def test_wrong_spaces_are_refused():
    config = config_file.get_config()
    config.search.draws = 200
    with pytest.raises(UserError, match="space has 972 settings, expected twice"):
        recipe.check(config)
    del config.space["rate"]
    with pytest.raises(UserError, match=r"space has \['negatives', 'power', 'subsample',"):
        recipe.check(config)
