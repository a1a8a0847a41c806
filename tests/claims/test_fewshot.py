"""Few-shot claims in quick form, and what splits and loads; `make claims` measures them in full.

Digits of 8x8 pixels, a short base training, few episodes, the three methods that are compared.
"""

import json
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.fewshot import base_digits, compare_digits
from experiments.fewshot import base_training, clustering, encoders, episodes
from experiments.fewshot.common import Parts, split_classes
from experiments.fewshot.features import Features, read_npz
from experiments.fewshot.trajectory import largest_increase
from rml.errors import UserError
from rml.evaluation import clustering_scores
from rml.training import make_mesh

Mapping.register(ConfigDict)  # it has a mapping's methods; the type checker wants it said

QUICK = (
    "--config=configs/fewshot/compare_digits.py", "--config.train.steps=100",
    "--config.train.eval_every=0", "--config.episodes.count=1000",
    "--config.episodes.validation=200", "--config.episodes.imbalanced=False",
    "--config.episodes.shots=(1,)", "--config.energy.episodes=20",
    "--config.compared=('simple_shot','soft_kmeans','transductive_clustering')",
)  # fmt: skip


@pytest.fixture
def measured(summarize, tmp_path):
    """Runs with these arguments and returns the metrics, which claims hold, and the directory."""

    def run(*args: str):
        summary = summarize(*args)
        holds = {
            (claim["metric"], claim["relation"]): claim["holds"] for claim in summary["claims"]
        }
        return summary["metrics"], holds, tmp_path / "run"

    return run


def test_regularised_clustering_beats_the_nearest_class_mean_and_its_energy_falls(measured):
    metrics, holds, directory = measured(*QUICK)
    assert holds["regularised_over_simple_shot", ">="], metrics
    assert holds["regularised_over_kmeans", "<="], metrics
    assert holds["energy_increase", "<="], metrics
    # Half a point is within the noise of so few episodes: only its sign is asked here.
    assert metrics["regularised_over_kmeans"] > 0, metrics
    drawn = {path.name for path in (directory / "figures").glob("*.png")}
    assert drawn >= {"table.png", "accuracy.png", "search.png", "energy.png", "assignments.png"}

    # The encoder of that run, found by its directory, gives the accuracy that the run measured.
    config = compare_digits.get_config()
    config.features.update(dict(of="run", run=str(directory)))
    features = encoders.load_features(config, types.SimpleNamespace())
    novel = episodes.transformed(features, config.features.transform).novel
    setting = episodes.Setting(5, 1)
    drawn = episodes.draw_episodes(novel, config, setting, count=1000)
    mean, half = episodes.measure("simple_shot", {}, novel[0], drawn, config, setting)
    assert mean == pytest.approx(metrics["accuracy_5way_1shot_simple_shot"], abs=1e-5)
    assert half == pytest.approx(metrics["interval_5way_1shot_simple_shot"], abs=1e-5)
    with pytest.raises(UserError, match=r"trained on images \[8, 8, 1\]"):
        encoders.load_encoder(directory, (28, 28, 1))
    with pytest.raises(UserError, match="expected the directory of a run"):
        encoders.load_encoder(directory / "nothing", (8, 8, 1))


def test_another_experiments_encoder_gives_the_features(launch, tmp_path):
    """A contrastive run of two steps, then its encoder, each by the launcher as a user has it."""
    trained = launch(
        "--config=configs/contrastive/simclr_digits.py", f"--workdir={tmp_path / 'simclr'}",
        "--config.train.steps=2", "--config.optimizer.warmup_steps=1",
        "--config.train.batch_size=64", "--config.train.log_every=1",
        "--config.train.eval_every=0", timeout=900,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    compare = (
        *QUICK, "--config.features.of=run", "--config.episodes.count=100",
        "--config.episodes.validation=20",
    )  # fmt: skip
    missing = launch(*compare, f"--workdir={tmp_path / 'a'}", f"--config.features.run={tmp_path}")
    assert missing.returncode == 1
    assert "expected the directory of a run" in missing.stderr
    done = launch(
        *compare, f"--config.features.run={tmp_path / 'simclr'}", f"--workdir={tmp_path / 'b'}",
        "--cpu_devices=2", timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "b" / "summary.json").read_text())["metrics"]
    assert 0.2 < metrics["accuracy_5way_1shot_simple_shot"] < 0.95


def test_episodes_that_the_classes_do_not_have_are_refused_before_training():
    labels = {"validation": np.repeat(np.arange(6), 20), "novel": np.repeat(np.arange(5), 10)}
    config = ConfigDict(dict(episodes=dict(queries=6)))
    episodes.check_classes(labels, config, [episodes.Setting(5, 4)])
    with pytest.raises(UserError, match="novel classes: 5 ways need 5 classes of at least 5"):
        episodes.check_classes(labels, config, [episodes.Setting(5, 5)])
    with pytest.raises(UserError, match="validation classes: 7 ways need as many classes, got 6"):
        episodes.check_classes(labels, config, [episodes.Setting(7, 1)])


def test_energy_of_clustering_falls_and_it_finds_classes(tmp_path):
    config = ConfigDict(clustering_config())
    x, classes = clustering.load_points(config)
    assert x.shape == (2000, 4)
    assert clustering.build_graph(config, x) is None
    config.graph.neighbors = 4
    graph = clustering.build_graph(config, x)
    found = clustering.cluster(
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
        clustering.check_sizes(config, x, make_mesh())


def clustering_config():
    points = dict(of="mixture", number=2000, dimension=4, components=3, spread=20.0)
    fit = dict(
        num_clusters=3, start="k-means++", metric="euclidean", temperature=1.0, support=2,
        max_iterations=50, tolerance=1e-4, empty="farthest", block=1024,
    )  # fmt: skip
    timing = dict(sizes=(1000, 2000), iterations=2, repetitions=1)
    graph = dict(neighbors=0, kind="semidefinite", laplacian_weights=(0.5,), approximate=False)
    return dict(seed=0, points=points, cluster=fit, graph=graph, timing=timing, mesh={})


def test_an_increase_is_seen():
    assert largest_increase(np.array([[4.0, 2.0, 2.0], [-2.0, -1.0, -1.0]])) == 0.5
    assert largest_increase(np.array([[4.0, 2.0, 2.0], [-2.0, -2.5, -2.5]])) == -0.2
    assert largest_increase(np.array([[8.0, -1e-9, 1e-9]])) == 2e-9 / 8
    assert largest_increase(np.array([[4.0, 4.0]])) == 0.0


PRESENT = {part: np.arange(10) for part in ("base", "validation", "novel")}
SPLITS = dict.fromkeys(PRESENT, "all")


def wanted(**classes):
    return ConfigDict(dict(seed=None) | classes)


def test_counted_classes_are_disjoint_and_lists_stay():
    found = split_classes(wanted(base=4, validation=3, novel=(0, 9)), PRESENT, SPLITS)
    assert {part: v.tolist() for part, v in found.items()} == {
        "base": [1, 2, 3, 4], "validation": [5, 6, 7], "novel": [0, 9]
    }  # fmt: skip
    shuffled = split_classes(wanted(base=4, validation=3, novel=3, seed=0), PRESENT, SPLITS)
    assert sorted(np.concatenate(list(shuffled.values())).tolist()) == list(range(10))
    assert shuffled["base"].tolist() != [0, 1, 2, 3]
    same = split_classes(wanted(base=(2, 3), validation="base", novel=2), PRESENT, SPLITS)
    assert same["validation"].tolist() == [2, 3]
    assert same["novel"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (dict(base=(0, 1), validation=(1, 2), novel=(3,)), "classes.base and classes.validation"),
        (dict(base=(0, 0), validation=(1,), novel=(3,)), "expected every class in one part, once"),
        (dict(base=(0,), validation=(1,), novel=(12,)), r"classes.novel names \[12\]"),
        (dict(base=8, validation=3, novel=1), "classes.validation is 3, expected 1 to 2"),
        (dict(base=0, validation=3, novel=1), "classes.base is 0"),
        (dict(base="novel", validation=3, novel=1), "classes.base is 'novel'"),
    ],
)
def test_splits_of_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        split_classes(wanted(**classes), PRESENT, SPLITS)


def test_parts_hold_their_classes_and_no_image_of_training():
    config = base_digits.get_config()
    parts = Parts(config)
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
        Parts(config)["base"]


def test_features_of_a_file_are_checked(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(6, 3)) for part in PRESENT}
    arrays |= {f"y_{part}": np.array(["b", "a", "b", "a", "c", "c"]) for part in PRESENT}
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    features = read_npz(path)
    assert isinstance(features, Features)
    assert features.novel[1].tolist() == [1, 0, 1, 0, 2, 2]
    np.testing.assert_allclose(features.base[0], arrays["x_base"], rtol=1e-6)
    for change, message in (
        ({"x_novel": arrays["x_novel"][:, :2]}, r"x_novel is \[6, 2\]"),
        ({"y_base": arrays["y_base"][:5]}, r"y_base \[5\]"),
        ({"x_validation": arrays["x_validation"] * np.nan}, "x_validation holds NaN"),
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(UserError, match=message):
            read_npz(path)
    np.savez(path, x_base=arrays["x_base"])
    with pytest.raises(UserError, match="lack y_base, x_validation"):
        read_npz(path)


def test_smoothed_targets_give_the_least_loss_at_the_smoothed_probabilities():
    """The loss at logits log t of the smoothed target t is its entropy, the least there is."""
    config = base_digits.get_config()
    assert base_training.num_base(config) == 5
    smoothing = config.loss.smoothing
    target = np.full(5, smoothing / 5)
    target[2] += 1 - smoothing
    entropy = -(target * np.log(target)).sum()
    loss = base_training.smoothed_cross_entropy
    value = loss(jnp.log(jnp.asarray(target))[None], jnp.array([2]), smoothing=smoothing)
    assert float(value) == pytest.approx(entropy, rel=1e-6)
    other = loss(jnp.array([[0.0, 0, 9, 0, 0]]), jnp.array([2]), smoothing=smoothing)
    assert float(other) > entropy
