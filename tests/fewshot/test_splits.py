"""Few-shot methods over splits of the classes: what is chosen, paired and averaged."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.fewshot import parts
from experiments import ranges
from experiments.fewshot import common, splits
from experiments.registry import read_config
from rml import fewshot
from rml.errors import UserError
from rml.fewshot import Setting, evaluate
from rml.ops.intervals import t_interval
from rml.training import RunDirectory, make_mesh

TWO = {
    "simple_shot": dict(kind=("UN", "CL2N")),
    "shifted_simple_shot": dict(kind=("UN", "CL2N")),
    "soft_kmeans": dict(temperature=(0.1, 1.0)),
    "transductive_clustering": dict(laplacian_weight=(0.1, 1.0), temperature=0.1),
    "tim": dict(steps=3, learning_rate=(1e-3, 1e-2)),
    "alpha_tim": dict(steps=3, learning_rate=(1e-3, 1e-2)),
    "pt_map": dict(power=None, steps=2, rate=(0.2, 0.4)),
}


@pytest.fixture
def config(tmp_path):
    """Of images in classes of one size, for which the second split compiles nothing."""
    x = np.random.default_rng(0).integers(0, 256, (400, 4, 3, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(400) % 10)
    config = parts.splits(
        **parts.digits() | dict(
            classes=dict(base=3, validation=3, novel=4, seed=0),
            episodes=dict(
                concentration=2.0, validation=10, validation_ways=3, judged="4way_1shot",
                kinds=parts.kinds((4, 1, 5, 20, True), (4, 5, 5, 20, False)),
            ),
        )
    )  # fmt: skip
    config.data.update(
        name=f"npz:{tmp_path / 'images.npz'}", image_shape=(4, 3, 1), base="all", validation="all"
    )
    config.features.of, config.splits, config.seed = "pixels", 2, 1
    config.methods, config.compared = TWO, tuple(TWO)
    return config


def drawn_accuracies(config, name, tried, x, drawn, ways):
    """Stands for the methods, whose programs are long to compile: the last choice is the best."""
    rng = np.random.default_rng([config.seed, *name.encode(), int(drawn.query.sum())])
    return rng.uniform(size=(len(drawn.query), 1)) + np.arange(len(tried))


@pytest.mark.slow
def test_differences_are_paired_and_their_interval_is_over_splits(config, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "accuracies", drawn_accuracies)
    run = RunDirectory(tmp_path / "run", config.to_dict())
    metrics = splits.run(config, run)
    names = sorted(path.name for path in (run.path / "methods").iterdir())
    assert names == ["split_2", "split_3"]  # those of seed 0 are 0 and 1
    own = [run.of_method(name).summary()["metrics"] for name in names]
    run.close()
    for claim in splits.CLAIMS:
        assert np.isfinite([metrics[claim.metric], metrics[claim.null]]).all()
    key = "accuracy_4way_1shot_"
    lead = [one[f"{key}transductive_clustering"] - one[f"{key}simple_shot"] for one in own]
    expected = t_interval(np.array(lead), overlap=4 / 6)  # novel classes over the others
    found = [metrics[f"regularised_over_simple_shot{end}"] for end in ("", "_low", "_high")]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    lost = [one[f"{key}pt_map"] - one["accuracy_4way_1shot_imbalanced_pt_map"] for one in own]
    assert metrics["pt_map_lost"] == pytest.approx(np.mean(lost))
    accuracy = [one[f"{key}tim"] for one in own]
    assert metrics[f"{key}tim"] == pytest.approx(np.mean(accuracy))
    assert accuracy[0] != accuracy[1]
    assert {metrics[f"tries_{name}"] for name in TWO} == {2}
    assert {one["chosen_4way_1shot_tim_learning_rate"] for one in own} == {1e-2}
    drawn = {path.name for path in (run.path / "figures").iterdir()}
    assert drawn == {"table.png", "accuracy.png", "accuracy_imbalanced.png"}


@pytest.mark.slow
def test_choices_at_the_edge_of_their_candidates_are_counted_over_splits(
    config, tmp_path, monkeypatch
):
    config.methods = {
        name: {k: (*v, v[-1] * 2 if k != "kind" else "L2N") if isinstance(v, tuple) else v
               for k, v in options.items()}
        for name, options in TWO.items()
    }  # fmt: skip
    # Both are chosen on episodes of 3 ways and 1 shot, but of other numbers of queries.
    config.episodes.kinds["3way_1shot"] = dict(
        ways=3, shots=1, queries=4, count=20, imbalanced=False
    )

    def best_by_seed_and_queries(config, name, tried, x, drawn, ways):
        place = 0 if drawn.query.shape[1] == 3 * 4 else config.seed - 1  # seeds are 2 and 3
        return np.eye(3)[[place] * len(drawn.query)][:, : len(tried)]

    monkeypatch.setattr(common, "accuracies", best_by_seed_and_queries)
    run = RunDirectory(tmp_path / "run", config.to_dict())
    metrics = splits.run(config, run)
    own = [run.of_method(f"split_{seed}").summary()["metrics"] for seed in (2, 3)]
    run.close()
    edges = {name for name in metrics if "_at_edge_" in name}
    assert {name.split("_at_edge_")[0] for name in edges} == {
        "temperature", "laplacian_weight", "learning_rate", "rate"
    }  # fmt: skip
    assert len(edges) == 3 * 5  # a kind has one such option of each method but SimpleShot's two
    for name in edges:
        # The middle candidate in one split and the last in the other, the first in both.
        assert metrics[name] == (1.0 if "3way_1shot" in name else 0.5)
    chosen = [one["chosen_4way_1shot_soft_kmeans_temperature"] for one in own]
    assert chosen == [1.0, 2.0]
    assert [one["chosen_3way_1shot_soft_kmeans_temperature"] for one in own] == [0.1, 0.1]
    assert not any("chosen" in name for name in metrics)  # their mean would be no choice


def test_an_edge_is_the_smallest_or_largest_of_three_numbers_or_more():
    options = dict(
        scale=(10.0, 5.0, 20.0), steps=(1, 5, 20), rate=(0.1, 1.0), kind=("UN", "L2N", "CL2N"),
        neighbors=3,
    )  # fmt: skip
    chosen = dict(scale=5.0, steps=5, rate=0.1, kind="UN", neighbors=3)
    assert common.edges(options, chosen, "5way_1shot_one") == {
        "scale_at_edge_5way_1shot_one": 1.0, "steps_at_edge_5way_1shot_one": 0.0
    }  # fmt: skip


@pytest.mark.slow
def test_choices_are_those_of_a_search_and_a_second_split_compiles_nothing(config):
    rng = np.random.default_rng(0)
    x = [jnp.asarray(rng.normal(size=(60, 4)), jnp.float32) for _ in range(2)]
    x = [one.at[:, 0].add(jnp.arange(60) % 4) for one in x]
    setting, labels = Setting(3, 1, 4), jnp.arange(60) % 4
    options = dict(temperature=(0.02, 0.2, 2.0), laplacian_weight=(0.1, 1.0), neighbors=(2, 4))
    tried = fewshot.choices(options | dict(steps=5))
    drawn = common.draw_episodes(config, (x[0], labels), setting, count=16)
    name = "transductive_clustering"
    found = common.accuracies(config, name, tried, x[0], drawn, 3).mean(axis=0)
    searched = fewshot.search(
        fewshot.find_method(name), options | dict(steps=5), x[0], drawn, ways=3,
        mesh=make_mesh(config.mesh),
    )  # fmt: skip
    assert searched.options == tried[int(np.argmax(found))].options
    for choice, accuracy in zip(tried, found, strict=True):
        places = tuple(v.index(choice.options[k]) for k, v in searched.candidates.items())
        assert searched.accuracies[places] == accuracy
    before = evaluate._accuracies._cache_size()
    common.accuracies(config, name, tried, x[1], drawn, 3)
    assert evaluate._accuracies._cache_size() == before > 0


def test_no_split_is_refused_with_the_config():
    given = read_config("configs/fewshot/compare_icons.py", ["--config.splits=0"])
    with pytest.raises(UserError, match="splits is 0, expected a whole number of at least 1"):
        ranges.checked_experiment(given)


def test_unequal_numbers_of_options_and_missing_kinds_are_refused(config):
    assert splits.check(config) == dict.fromkeys(TWO, 2)
    config.methods.simple_shot.kind = ("UN",)  # what has no more options may have fewer
    assert splits.check(config) == dict.fromkeys(TWO, 2) | {"simple_shot": 1}
    config.methods.simple_shot.kind = ("UN", "L2N", "CL2N")
    with pytest.raises(UserError, match=r"'simple_shot': 3.* combinations of options, expected"):
        splits.check(config)
    config.methods.simple_shot.kind = ("UN", "L2N")
    config.methods.tim.learning_rate = (1e-3, 1e-2, 1e-1)
    with pytest.raises(UserError, match=r"'tim': 3.* combinations of options, expected equally"):
        splits.check(config)
    config.methods.tim.learning_rate = (1e-3, 1e-2)
    config.episodes.kinds["4way_1shot"].imbalanced = False
    with pytest.raises(UserError, match=r"4way_1shot has 1 shot, is imbalanced too"):
        splits.check(config)
    config.compared = config.compared[1:]
    with pytest.raises(UserError, match="compared lacks 'simple_shot'"):
        splits.check(config)
    config.features.transform = "CL2n"
    with pytest.raises(UserError, match=r"unknown features\.transform 'CL2n'; did you mean 'CL2N'"):
        splits.check(config)


def test_validation_episodes_are_balanced_and_have_as_many_ways_as_asked(config):
    setting = Setting(400, 1, 2, 2.0)
    assert common.validation_setting(config, setting) == Setting(3, 1, 2)
    assert common.settings(config) == [
        Setting(4, 1, 5, None), Setting(4, 5, 5, None), Setting(4, 1, 5, 2.0)
    ]  # fmt: skip
