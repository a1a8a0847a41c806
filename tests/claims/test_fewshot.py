"""Few-shot claims in quick form, and what splits and loads; `make claims` measures them in full.

Digits of 8x8 pixels, a short base training, few episodes, the three methods that are compared.
"""

import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.contrastive import simclr_digits
from configs.fewshot import base_digits, compare_digits, compare_icons, compare_pydocs
from experiments.common import class_parts, pretraining
from experiments.common.class_parts import image_parts, over_splits
from experiments.common.encoders import load_encoder
from experiments.contrastive import simclr
from experiments.fewshot import base_training, clustering, common, compare, drawing, splits
from experiments.fewshot.features import load_features
from experiments.ranges import checked_experiment
from experiments.registry import find_experiment
from rml import fewshot
from rml.errors import UserError
from rml.evaluation import clustering_scores
from rml.fewshot import Setting, cluster, largest_increase, simple_shot
from rml.ops.intervals import t_interval
from rml.training import RunDirectory, initial_state
from tests.system.two_steps import override

QUICK = {
    "train.steps": 100, "train.eval_every": 0, "episodes.count": 300,
    "episodes.validation": 60, "episodes.imbalanced": False, "episodes.shots": (1,),
    "energy.episodes": 20,
    "compared": ("simple_shot", "soft_kmeans", "transductive_clustering"),
    "methods.simple_shot.kind": ("UN",), "methods.simple_shot.unit_prototypes": False,
}  # fmt: skip


ENDS = ("", "_low", "_high")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised_steps")
def test_regularised_clustering_beats_the_nearest_class_mean_and_its_energy_falls(
    measure, tmp_path, monkeypatch
):
    over, draw = [], drawing.draw_accuracies
    monkeypatch.setattr(
        drawing, "draw_accuracies",
        lambda *args, **options: [over.append(options), draw(*args, **options)],
    )  # fmt: skip
    metrics, holds = measure("configs/fewshot/compare_digits.py", QUICK | {"train.steps": 200})
    assert over == [{"over": "episodes of one seed"}]
    directory = tmp_path / "run"
    assert holds["regularised_over_simple_shot", ">="], metrics
    assert holds["regularised_over_kmeans", ">="], metrics
    assert holds["energy_increase", "<="], metrics
    # Half a point is within the noise of so few episodes: only the order of the methods is asked.
    assert 0 < metrics["regularised_over_kmeans"] < metrics["regularised_over_simple_shot"], metrics
    for name in ("regularised_over_simple_shot", "regularised_over_kmeans"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"], metrics
    # Without its term the method is soft K-means, to the last episode if they choose alike.
    low, same, high = (metrics[f"unregularised_over_kmeans{end}"] for end in ("_low", "", "_high"))
    assert low < same < high or low == same == high == 0, metrics
    chosen = metrics["chosen_5way_1shot_soft_kmeans_temperature"]
    assert metrics["temperature_at_edge_5way_1shot_soft_kmeans"] == (chosen in (0.02, 0.5))
    assert metrics["chosen_5way_1shot_simple_shot_kind_is_UN"] == 1
    drawn = {path.name for path in (directory / "figures").glob("*.png")}
    assert drawn >= {"table.png", "accuracy.png", "search.png", "energy.png", "assignments.png"}

    # The encoder of that run, found by its directory, gives the accuracy that the run measured.
    config = compare_digits.get_config()
    config.features.update(dict(of="run", run=str(directory)))
    novel = load_features(config, types.SimpleNamespace())["novel"]
    setting = Setting(5, 1, config.episodes.queries)
    drawn = common.draw_episodes(config, novel, setting, count=QUICK["episodes.count"])
    found = common.evaluate(config, simple_shot, novel[0], drawn, setting)
    mean, half = fewshot.mean_and_interval(found)
    assert mean == pytest.approx(metrics["accuracy_5way_1shot_simple_shot"], abs=1e-5)
    assert half == pytest.approx(metrics["interval_5way_1shot_simple_shot"], abs=1e-5)
    with pytest.raises(UserError, match=r"trained on images \[8, 8, 1\]"):
        load_encoder(directory, (28, 28, 1))
    with pytest.raises(UserError, match="expected the directory of a run"):
        load_encoder(directory / "nothing", (8, 8, 1))


@pytest.mark.parametrize("file", [base_digits, compare_digits])
def test_an_unknown_transform_is_refused_before_images_are_opened(monkeypatch, file):
    config = file.get_config()
    config.features.transform = "CL2n"
    monkeypatch.setattr(class_parts, "open_parts", lambda *_: pytest.fail("images are opened"))
    with pytest.raises(UserError, match=r"unknown features\.transform 'CL2n'; did you mean 'CL2N'"):
        find_experiment(config.experiment).run(config, None)


@pytest.mark.parametrize("file", [base_digits, compare_digits])
def test_one_episode_which_has_no_interval_is_refused(file):
    config = file.get_config()
    config.episodes.count = 1
    with pytest.raises(UserError, match=r"episodes\.count is 1, expected a whole .* at least 2"):
        checked_experiment(config)


@pytest.mark.slow
def test_base_training_measures_the_shots_and_ways_that_are_asked_for(monkeypatch, tmp_path):
    config = base_digits.get_config()
    config.episodes.update(dict(ways=(3, 5), shots=(5, 1), count=50))
    other = initial_state(base_training.task(config), seed=1)
    monkeypatch.setattr(base_training, "train", lambda *_: other)
    evaluate, judged = common.evaluate, []

    def kept(config, method, x, drawn, setting):
        found = evaluate(config, method, x, drawn, setting)
        if setting == Setting(3, 1, config.episodes.queries):
            judged.append(found)
        return found

    monkeypatch.setattr(common, "evaluate", kept)
    monkeypatch.setattr(base_training.evaluation, "embed_2d", lambda x, method: x[:, :2])
    run = RunDirectory(tmp_path / "run", config.to_dict())
    metrics = base_training.run(config, run)
    run.close()
    for name in ("", "_pixels", "_untrained"):
        # The first ways and 1 shot, which claims are about, have no place in the name.
        found = {
            place: metrics[f"novel{place}{name}"]
            for place in ("", "_3way_5shot", "_5way_1shot", "_5way_5shot")
        }
        assert found[""] < found["_3way_5shot"]
        assert found["_5way_1shot"] < min(found[""], found["_5way_5shot"])
        assert all(metrics[f"interval_novel{place}{name}"] > 0 for place in found)
    trained, of_pixels, untrained = judged
    for name, first, second in (
        ("novel_over_pixels", trained, of_pixels),
        ("novel_over_untrained", trained, untrained),
        ("novel_untrained_over_pixels", untrained, of_pixels),
    ):
        found = [metrics[f"{name}{end}"] for end in ENDS]
        np.testing.assert_allclose(found, t_interval(first - second), rtol=1e-9)
        assert found[1] < found[0] < found[2]
    assert metrics["novel_over_pixels"] == metrics["novel"] - metrics["novel_pixels"]
    config.episodes.shots = (5,)
    with pytest.raises(UserError, match=r"episodes\.shots is \(5,\), expected 1 among them"):
        base_training.run(config, None)


@pytest.mark.parametrize(("key", "given"), [("pairs", (1000,)), ("sizes", (2000, 2000))])
def test_a_slope_of_one_number_of_points_is_refused_before_any_work(monkeypatch, key, given):
    config = ConfigDict(clustering_config())
    config.timing[key] = given
    monkeypatch.setattr(clustering, "load_points", lambda config: pytest.fail("points are loaded"))
    with pytest.raises(
        UserError, match=rf"timing\.{key} is \({given[0]}, ?.*\), expected two diff"
    ):
        clustering.run(config, None)


def test_intervals_of_a_comparison_are_said_to_be_over_episodes_of_one_seed(monkeypatch, tmp_path):
    labels = []
    monkeypatch.setattr(drawing.figures, "dots", lambda *args: labels.append(args[-1]))
    table = {Setting(5, 1, 15, balance): {"tim": (0.5, 0.1)} for balance in (None, 2.0)}
    drawing.draw_accuracies(lambda name: tmp_path / name, table, over="episodes of one seed")
    assert labels == ["accuracy (%), 95% interval over episodes of one seed"] * 2
    for name in ("table.png", "accuracy.png", "accuracy_imbalanced.png", "search.png"):
        assert "over episodes of one seed" in compare.CAPTIONS[name]


def test_methods_on_the_same_episodes_are_compared_by_paired_differences():
    first, second = np.array([0.9, 0.6, 0.75, 0.4]), np.array([0.8, 0.55, 0.6, 0.35])
    found = common.difference("one_over_other", first, second)
    half = 3.182446 * np.std([0.1, 0.05, 0.15, 0.05], ddof=1) / 2  # Student's t, 3 degrees
    assert found == pytest.approx({
        "one_over_other": 0.0875, "one_over_other_low": 0.0875 - half,
        "one_over_other_high": 0.0875 + half,
    }, rel=1e-6)  # fmt: skip
    # That the episodes differ in difficulty would widen an unpaired interval.
    unpaired = 3.182446 * np.hypot(np.std(first, ddof=1), np.std(second, ddof=1)) / 2
    assert unpaired > 5 * half


def test_claims_compare_methods_and_nulls_on_the_same_episodes(monkeypatch):
    config, setting, drawn = compare_digits.get_config(), Setting(5, 1, 15), []
    monkeypatch.setattr(
        common, "draw_episodes",
        lambda config, part, setting, **options: drawn.append((part[1], setting, options)),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.3, 0.7, 40)
    nearest, shifted, plain, regularised, unregularised = (
        hard + lead + rng.normal(scale=0.02, size=40) for lead in (0.0, 0.01, 0.05, 0.2, 0.1)
    )
    accuracies = {
        (fewshot.simple_shot, "L2N"): nearest,
        (common.shifted, "L2N"): shifted,
        (fewshot.soft_kmeans, 0.2): plain,
        (fewshot.transductive_clustering, 0.3): regularised,
        (fewshot.transductive_clustering, 0.0): unregularised,
    }
    monkeypatch.setattr(
        common, "evaluate",
        lambda config, method, *_: accuracies[method.func, *method.keywords.values()],
    )  # fmt: skip
    searches = {
        name: types.SimpleNamespace(options={option: value})
        for name, option, value in (
            ("simple_shot", "kind", "L2N"), ("soft_kmeans", "temperature", 0.2),
            ("transductive_clustering", "laplacian_weight", 0.3),
        )
    }  # fmt: skip
    novel = None, "labels"
    found = common.compare(config, setting, novel, searches)
    metrics = compare.differences(config, setting, novel, found, searches)
    assert drawn == [("labels", setting, {"count": 2000})] * 2
    judged = {name for claim in compare.CLAIMS for name in (claim.metric, claim.null)}
    over_episodes = {name for name in judged if not name.startswith("energy")}
    assert metrics.keys() == {f"{name}{end}" for name in over_episodes for end in ENDS}
    for name, first, second in (
        ("regularised_over_simple_shot", regularised, nearest),
        ("shifted_over_simple_shot", shifted, nearest),
        ("regularised_over_kmeans", regularised, plain),
        ("unregularised_over_kmeans", unregularised, plain),
    ):
        expected = t_interval(first - second)
        np.testing.assert_allclose([metrics[f"{name}{end}"] for end in ENDS], expected, rtol=1e-9)


def test_a_comparison_trains_only_where_its_features_say_so():
    assert compare.task(compare_digits.get_config()).batch_spec["image"].shape == (128, 8, 8, 1)
    with pytest.raises(UserError, match=r"features\.of is 'text', with which fewshot\.compare"):
        compare.task(compare_pydocs.get_config())


COMPARE = """
import json, sys
from pathlib import Path
from experiments.registry import find_experiment
from rml.training import RunDirectory
from tests.system.two_steps import override, read

changes = json.loads(sys.argv[2], object_hook=lambda found: {
    key: tuple(value) if isinstance(value, list) else value for key, value in found.items()
})
config = override(read("configs/fewshot/compare_digits.py"), changes)
run = RunDirectory(Path(sys.argv[1]), config.to_dict())
metrics = find_experiment(config.experiment).run(config, run)
run.close()
print(json.dumps({name: float(value) for name, value in metrics.items()}))
"""


@pytest.mark.slow
def test_another_experiments_encoder_gives_the_features(forked, tmp_path):
    """A contrastive run of two steps, then its encoder, its episodes on two devices."""
    config = simclr_digits.get_config()
    config.train.update(dict(steps=2, batch_size=64, eval_every=0, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    run = RunDirectory(tmp_path / "simclr", config.to_dict())
    pretraining.train(config, run, simclr.task(config))
    with pytest.raises(
        UserError, match=rf"features\.run is '{run.path}', a run that has not ended"
    ):
        load_encoder(run.path, config.data.image_shape)
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    run.close()
    changes = QUICK | {
        "features.of": "run", "features.run": str(tmp_path / "simclr"), "episodes.count": 100,
        "episodes.validation": 20,
    }  # fmt: skip
    missing = override(compare_digits.get_config(), changes | {"features.run": str(tmp_path)})
    with pytest.raises(UserError, match="expected the directory of a run"):
        load_features(missing, types.SimpleNamespace())
    metrics = forked(COMPARE, str(tmp_path / "b"), json.dumps(changes), devices=2)
    assert 0.2 < metrics["accuracy_5way_1shot_simple_shot"] < 0.95


def test_episodes_that_the_classes_do_not_have_are_refused_before_training():
    labels = {"validation": np.repeat(np.arange(6), 20), "novel": np.repeat(np.arange(5), 10)}
    common.check_classes(labels, [Setting(5, 4, 6)])
    with pytest.raises(UserError, match="novel classes: 5 ways need 5 classes of at least 5"):
        common.check_classes(labels, [Setting(5, 5, 6)])
    with pytest.raises(UserError, match="validation classes: 7 ways need as many classes, got 6"):
        common.check_classes(labels, [Setting(7, 1, 6)])


@pytest.mark.slow
def test_energy_of_clustering_falls_and_it_finds_classes(tmp_path):
    config = ConfigDict(clustering_config())
    x, classes = clustering.load_points(config)
    assert x.shape == (2000, 4)
    assert clustering.build_graph(config, x) is None
    config.graph.neighbors = 4
    graph = clustering.build_graph(config, x)
    found = cluster(
        x, key=jax.random.key(0), graph=graph, laplacian_weight=0.5, **config.cluster.to_dict()
    )
    energies = np.asarray(found.energies)[: int(found.iterations)]
    assert largest_increase(energies[None]) <= 1e-5
    # Components ten deviations apart are told apart without an error.
    scores = clustering_scores(classes, found.labels)
    assert scores["accuracy"] == 1.0
    seconds = clustering.measure_times(config, x)
    assert list(seconds) == [1000, 2000]
    assert min(seconds.values()) > 0
    config.graph.laplacian_weights = ()
    with pytest.raises(UserError, match=r"graph\.laplacian_weights is empty"):
        clustering.build_graph(config, x)
    config.timing.sizes = (1000, 2001)
    with pytest.raises(UserError, match=r"timing\.sizes has 2001, expected 3 clusters or more and"):
        clustering.check_sizes(config, x)


def clustering_config():
    points = dict(of="mixture", number=2000, dimension=4, components=3, spread=20.0)
    fit = dict(
        num_clusters=3, start="k-means++", metric="euclidean", temperature=1.0, support=2,
        max_iterations=50, tolerance=1e-4, empty="farthest", block=1024,
    )  # fmt: skip
    timing = dict(sizes=(1000, 2000), pairs=(500, 1000), iterations=2, repetitions=1)
    graph = dict(neighbors=0, kind="semidefinite", laplacian_weights=(0.5,), approximate=False)
    return dict(seed=0, points=points, cluster=fit, graph=graph, timing=timing, mesh={})


@pytest.mark.slow
def test_parts_hold_their_classes_and_no_image_of_training():
    config = base_digits.get_config()
    assert common.num_base(config) == 5
    parts = image_parts(config)
    assert parts["base"].class_names == ("0", "1", "2", "3", "4")
    assert parts["novel"].class_names == ("5", "6", "7", "8", "9")
    trained = {image.tobytes() for image in parts["base"].arrays()["image"]}
    for part in ("validation", "held_out", "novel"):
        assert set(parts[part].labels) == set(range(5))
        images = parts[part].arrays()["image"]
        # The data set itself holds a few images twice.
        assert np.mean([image.tobytes() in trained for image in images]) < 0.01
    config.data.validation = config.data.base
    with pytest.raises(UserError, match="expected another split"):
        image_parts(config)


def test_a_stopped_comparison_of_splits_measures_complete_ones_no_more(monkeypatch, tmp_path):
    config = compare_icons.get_config()
    config.splits, calls = 3, []
    names = (*config.compared, splits.UNREGULARISED)
    places = [f"{own.name}_{name}" for own in common.settings(config) for name in names]

    def measure_split(_, inner, seed):
        calls.append(seed)
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return {f"accuracy_{place}": 0.5 + seed / 8 for place in places}, {}

    monkeypatch.setattr(splits, "measure_split", measure_split)
    monkeypatch.setattr(splits.drawing, "draw_accuracies", lambda *args, **options: None)
    run = RunDirectory(tmp_path / "run", config.to_dict())
    with pytest.raises(KeyboardInterrupt):
        splits.run(config, run)
    run.close()
    run = RunDirectory(tmp_path / "run", config.to_dict())
    metrics = splits.run(config, run)
    run.close()
    assert calls == [0, 1, 2, 2]
    assert metrics[f"accuracy_{places[0]}"] == 0.625


def test_intervals_over_splits_are_wider_by_the_classes_that_splits_share():
    config = compare_icons.get_config()  # 130 novel classes, 204 to train on, 120 to choose by
    values = [0.1, 0.4, 0.2, 0.25, 0.3]
    mean, low, high = over_splits(config, values)
    half = 2.776445 * np.std(values, ddof=1) * np.sqrt(1 / 5 + 130 / 324)  # Student's t, 4 degrees
    np.testing.assert_allclose((mean, low, high), (0.25, 0.25 - half, 0.25 + half), rtol=1e-6)
    config = base_digits.get_config()  # five novel classes, five to train on and to choose by
    _, low, high = over_splits(config, values)
    half = 2.776445 * np.std(values, ddof=1) * np.sqrt(1 / 5 + 1)
    np.testing.assert_allclose((low, high), (0.25 - half, 0.25 + half), rtol=1e-6)
