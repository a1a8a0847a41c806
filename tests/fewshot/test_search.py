"""Options chosen on validation episodes: every combination is measured, the best one taken."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.fewshot import (
    METHODS,
    TITLES,
    Search,
    Setting,
    alpha_tim,
    combinations,
    evaluate_episodes,
    find_method,
    mean_and_interval,
    sample_episodes,
    search,
    simple_shot,
    soft_kmeans,
)


def data():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 12)
    x = rng.standard_normal((6, 8))[labels] + 0.8 * rng.standard_normal((72, 8))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    setting = Setting(4, 1, 5)
    return x, sample_episodes(jax.random.key(0), labels, episodes=16, **setting._asdict())


@pytest.mark.slow
def test_a_search_measures_every_combination():
    x, tasks = data()
    options = dict(temperature=[0.02, 1.0], distance=("cosine", "squared_euclidean"), steps=5)
    told: list[tuple[int, float]] = []
    found = search(
        soft_kmeans, options, x, tasks, ways=4, evaluated=lambda *given: told.append(given)
    )
    assert found.candidates == {
        "distance": ("cosine", "squared_euclidean"), "temperature": (0.02, 1.0)
    }  # fmt: skip
    table = {}
    for distance, temperature in itertools.product(*found.candidates.values()):
        method = partial(soft_kmeans, distance=distance, temperature=temperature, steps=5)
        accuracies = evaluate_episodes(method, x, tasks, ways=4)
        table[distance, temperature] = mean_and_interval(accuracies)
    means, halves = (np.reshape(part, (2, 2)) for part in zip(*table.values(), strict=True))
    np.testing.assert_allclose(found.accuracies, means, atol=1e-6)
    np.testing.assert_allclose(found.intervals, halves, atol=1e-6)
    assert len(np.unique(means)) > 1
    best = max(table, key=lambda pair: table[pair][0])
    assert found.chosen == dict(distance=best[0], temperature=best[1])
    assert found.options == found.chosen | dict(steps=5)
    firsts = [found.accuracies[0].max(), found.accuracies.max()]
    assert told == list(zip([2, 2], firsts, strict=True))
    assert combinations(options) == 4


def test_what_has_no_candidates_is_not_searched():
    x, tasks = data()
    found = search(simple_shot, {"kind": "UN"}, x[:0], tasks, ways=4)  # rows would be missed
    assert found.options == {"kind": "UN"}
    assert found.candidates == found.chosen == {}
    assert combinations({"kind": "UN"}) == 0


def test_along_takes_the_best_of_the_other_options():
    accuracies = np.array([[[0.1, 0.5], [0.4, 0.2]], [[0.3, 0.2], [0.6, 0.7]]])
    candidates = {"a": (1, 2), "b": (3, 4), "c": (5, 6)}
    found = Search({}, candidates, accuracies, accuracies / 10)
    mean, half = found.along("c", "a")
    np.testing.assert_array_equal(mean, [[0.4, 0.6], [0.5, 0.7]])
    np.testing.assert_array_equal(half, mean / 10)
    np.testing.assert_array_equal(found.along("a", "b", "c")[0], accuracies)


def test_settings_have_names():
    assert (Setting(5, 1, 15).name, Setting(5, 1, 15).title) == ("5way_1shot", "5-way 1-shot")
    uneven = Setting(20, 5, 15, 2.0)
    assert (uneven.name, uneven.title) == ("20way_5shot_imbalanced", "20-way 5-shot, imbalanced")


def test_methods_are_found_by_name():
    assert find_method("tim") is METHODS["tim"]
    assert TITLES.keys() == METHODS.keys()
    with pytest.raises(UserError, match="unknown few-shot method 'timm'; did you mean 'tim'"):
        find_method("timm")


def test_what_cannot_be_searched_is_named():
    x, episodes = data()
    wrong = {"center": jnp.zeros(8), "kind": "CL2N"}, {"temperature": (), "kind": "L2N"}
    for options, said in zip(
        wrong, ("option center is an array", "temperature has no"), strict=True
    ):
        with pytest.raises(UserError, match=said):
            search(simple_shot, options, x, episodes, ways=4)
    centred = partial(simple_shot, center=x.mean(0))
    found = search(centred, {"kind": "CL2N", "temperature": (0.1, 1.0)}, x, episodes, ways=4)
    assert found.accuracies.shape == (2,)


@pytest.mark.slow
def test_a_candidate_whose_scores_are_no_numbers_is_named():
    """Class 0 would be the largest of them, and right in a quarter of the queries."""
    x, episodes = data()
    options = {"alpha": (2.0, 1.0), "steps": 2}  # 1 is divided by: its search is no mistake before
    said = r"scores of alpha_tim\(steps=2, alpha=1.0\) are not finite in 16 of 16 episodes"
    with pytest.raises(UserError, match=said):
        search(alpha_tim, options, x, episodes, ways=4)


FLOATS = {
    "simple_shot": dict(temperature=(0.1, 1.0)),
    "linear_head": dict(learning_rate=(0.5, 1.0), weight_decay=(0.01, 0.1), steps=5),
    "cosine_head": dict(scale=(2.0, 10.0), steps=5),
    "soft_kmeans": dict(temperature=(0.05, 0.2)),
    "hard_kmeans": dict(distance=("squared_euclidean", "cosine")),  # it has no floats
    "k_modes": dict(bandwidth=(0.5, 1.0), temperature=(0.05, 0.2)),
    "laplacian_shot": dict(laplacian_weight=(0.3, 0.7)),
    "transductive_clustering": dict(laplacian_weight=(0.05, 0.2)),
    "tim": dict(learning_rate=(1e-3, 1e-2), steps=5),
    "tim_adm": dict(temperature=(5.0, 15.0), rate=(0.5, 1.0), steps=5),
    "alpha_tim": dict(alpha=(2.0, 5.0), steps=5),
    "bd_cspn": dict(scale=(1.0, 10.0)),
    "pt_map": dict(regularization=(5.0, 10.0), rate=(0.2, 0.5), power=None, steps=3),
    "label_propagation": dict(alpha=(0.3, 0.8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_features_of_single_precision_are_searched_where_numbers_are_double(name):
    if name == "pt_map":
        pytest.importorskip("ott")
    x, episodes = data()
    expected = search(METHODS[name], FLOATS[name], x, episodes, ways=4)
    with jax.enable_x64(True):
        assert x.dtype == jnp.float32
        found = search(METHODS[name], FLOATS[name], x, episodes, ways=4)
    np.testing.assert_allclose(found.accuracies, expected.accuracies, atol=0.01)
    assert found.accuracies.shape == expected.accuracies.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_candidates_reach_a_method_in_the_type_of_its_features(dtype):
    """Half precision is widened, as methods widen it."""
    types = set()

    def method(support, labels, query, *, num_classes, scale):
        types.add(scale.dtype)
        return jnp.full((len(query), num_classes), scale)

    x, episodes = data()
    with jax.enable_x64(True):
        search(method, {"scale": (0.5, 1.0)}, x.astype(dtype), episodes, ways=4)
    assert types == {jnp.dtype("float32")}
