"""Choices that the comparison makes by itself, its ranks after gates, and taxonomies."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs.hydra import compare_emoji, compare_glyphs, compare_icons
from experiments.common import images
from experiments.hydra import compare, methods, relations, tries
from experiments.hydra.evaluator import PAIRS, TransferEvaluator
from experiments.results import read_result
from rml import data, evaluation
from rml.errors import UserError
from rml.hydra import draw_pairs, gate_overlap, taxonomy_test
from rml.training import RunDirectory

RESULTS = Path(__file__).parents[2] / "results" / "hydra"


def test_each_method_takes_the_try_that_validation_images_prefer(monkeypatch, tmp_path):
    config = compare_emoji.get_config()
    best = dict(zip(methods.METHODS, (2, 0, 3, 1), strict=True))
    opened = []

    class Judge:
        def __init__(self, model, config):
            self.config = config

        def features(self, variables):
            return variables

        def knn(self, features):
            opened.append((self.config.data.test, self.config.data.domains.test))
            return features

    class State(float):
        variables = property(float)

    def together(task_of, configs):
        return task_of(None), configs

    def train(config, run, task):
        method, configs = task
        assert run.path.name == f"{method}_tries"
        assert [one.train.steps for one in configs] == [config.tries.steps] * 4
        return [State(0.9 if i == best[method] else 0.1 * i / 4) for i in range(4)]

    for name, double in (
        ("many", together), ("train_on_mesh", train), ("on_one_device", lambda state: state),
        ("unstack", lambda state, i: state[i]),
    ):  # fmt: skip
        monkeypatch.setattr(tries.tries, name, double)
    monkeypatch.setattr(tries, "ImageEvaluator", Judge)
    monkeypatch.setattr(methods, "task", lambda config, method: method)
    chosen, metrics = tries.choose(config, RunDirectory(tmp_path / "run", config.to_dict()))
    assert set(opened) == {("all", ("fluent",))}
    assert {metrics[f"tries_{method}"] for method in methods.METHODS} == {4}
    assert {metrics[f"validation_{method}"] for method in methods.METHODS} == {0.9}
    assert chosen["simclr"].simclr.temperature == metrics["chosen_simclr_temperature"] == 0.5
    assert chosen["supcon"].supcon.temperature == metrics["chosen_supcon_temperature"] == 0.05
    assert chosen["hydra"].loss.temperature == metrics["chosen_hydra_temperature"] == 0.1
    assert metrics["chosen_hydra_learning_rate"] == 4e-3
    assert chosen["classifier"].optimizer.learning_rate == 2e-3
    edges = {key: value for key, value in metrics.items() if "_at_edge_" in key}
    assert edges == {
        "temperature_at_edge_simclr": 1, "temperature_at_edge_supcon": 1,
        "temperature_at_edge_hydra": 0, "learning_rate_at_edge_classifier": 0,
    }  # fmt: skip
    for own in chosen.values():  # for as long, and on as many images, as the config says
        assert own.train.steps == config.train.steps
        assert own.data.test == config.data.test
        assert own.data.domains.test == ("openmoji",)


def test_methods_are_held_against_one_another():
    names = [*compare.RANKS.values(), *compare.ACCURACIES.values()]
    sizes = dict(hydra=7.0, supcon=5.0, simclr=3.0, classifier=2.0)
    found = compare.beside(
        {method: {n: size + i for i, n in enumerate(names)} for method, size in sizes.items()}
    )
    expected = {}
    for infix, own, others in (
        ("", 7.0, ("supcon", "simclr", "classifier")),
        ("_simclr", 3.0, ("supcon", "classifier")),
        ("_supcon", 5.0, ("simclr",)),
    ):
        for other in others:
            for i, n in enumerate(names):
                theirs = sizes[other] + i
                if n.startswith("rankme"):
                    expected[f"{n}{infix}_over_{other}"] = (own + i) / theirs
                else:
                    expected[f"{n}{infix}_minus_{other}"] = own - sizes[other]
    assert found == expected


def test_the_null_of_a_claim_on_a_method_is_another_against_the_same_opponent():
    opponents = []
    for claim in compare.CLAIMS:
        pattern = r"([a-z_]+?)(_simclr|_supcon|)_(over|minus)_([a-z]+)"
        if own := re.fullmatch(pattern, claim.metric):
            metric, method, relation, opponent = own.groups()
            null = re.fullmatch(pattern, claim.null).groups()
            assert not method
            assert null[1].removeprefix("_") not in ("", opponent)
            assert (null[0], *null[2:]) == (metric, relation, opponent)
            opponents.append(opponent)
    assert {*opponents} == {"supcon", "classifier"}


@pytest.mark.parametrize("name", ["glyphs", "icons", "emoji", "mnist5k"])
def test_stored_comparisons_hold_what_the_recipe_computes_of_their_terms(name):
    metrics = read_result(RESULTS / f"compare_{name}.json")["metrics"]
    terms = [*compare.RANKS.values(), *compare.ACCURACIES.values()]
    for seed in range(3):
        found = compare.beside(
            {method: {term: metrics[f"{method}_{term}"][seed] for term in terms}
             for method in methods.METHODS}
        )  # fmt: skip
        assert found == {key: metrics[key][seed] for key in found}


def test_unequal_numbers_of_tries_and_unknown_options_are_named():
    config = compare_glyphs.get_config()
    config.tries.supcon = config.tries.supcon[:2]
    with pytest.raises(UserError, match=r"'supcon': 2.* expected equally many"):
        tries.candidates(config)
    config = compare_glyphs.get_config()
    config.tries.hydra = ("loss.heat=1", *config.tries.hydra[1:])
    with pytest.raises(UserError, match=r"tries.hydra is 'loss.heat=1'"):
        tries.candidates(config)


def test_a_value_that_every_try_replaces_is_refused():
    for key, value, named in (
        ("simclr.temperature", 0.9, r"simclr\.temperature is 0\.9, which all of tries\.simclr"),
        ("supcon.temperature", 0.9, r"tries\.supcon replace by one of 0\.05, 0\.1, 0\.2: change"),
        ("loss.temperature", 0.9, r"loss\.temperature is 0\.9, which all of tries\.hydra"),
        ("optimizer.learning_rate", 0.05, r"learning_rate is 0\.05, .* tries\.classifier"),
    ):
        config = compare_glyphs.get_config()
        section, name = key.split(".")
        config[section][name] = value
        with pytest.raises(UserError, match=named):
            tries.candidates(config)
    config.optimizer.learning_rate = 1e-3  # of which three tries of each other method know
    assert [one.optimizer.learning_rate for one in tries.candidates(config)["hydra"]] == [
        1e-3, 1e-3, 1e-3, 4e-3
    ]  # fmt: skip


@pytest.mark.slow
def test_ranks_after_gates_are_of_ones_own_and_of_a_pairs_subspace():
    rng = np.random.default_rng(0)
    projections, labels = jnp.asarray(rng.normal(size=(40, 6))), jnp.arange(40) % 5
    table = jnp.asarray(rng.integers(0, 2, (5, 5, 6)), jnp.float32) + 0.1
    table = (table + table.swapaxes(0, 1)) / 2
    evaluator = object.__new__(TransferEvaluator)
    evaluator.seed = 3
    evaluator.outputs = lambda variables: (projections, labels)
    evaluator.train = type("Source", (), {"num_classes": 5})

    class Model:
        def apply(self, variables, first, second, method):
            return table[first, second]

    evaluator.model = Model()
    found = evaluator.ranks_of_gated({})
    own = jnp.stack([z * table[y, y] for z, y in zip(projections, labels, strict=True)])
    assert found["rankme_gated"] == pytest.approx(float(evaluation.rankme(own)), rel=1e-5)
    first, second = draw_pairs(PAIRS, classes=5, seed=3)
    ranks = [
        float(evaluation.rankme(projections * table[i, j]))
        for i, j in zip(first, second, strict=True)
    ]
    assert found["rankme_subspaces"] == pytest.approx(np.mean(ranks), rel=1e-5)
    assert min(ranks) < max(ranks)


def test_each_part_is_opened_for_its_own_designers(monkeypatch):
    config, given = compare_icons.get_config(), []
    image, label = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)

    def opened(*args, **options):
        given.append((args, options))
        return data.ArraySource(image, label, class_names="abcd")

    monkeypatch.setattr(images.data, "open_domains", opened)
    for part, wanted in (("train", ("mdi", "lucide")), ("test", ("tabler",))):
        images.open_images(config, part)
        assert given.pop() == (
            ("icons", "all", wanted),
            dict(data_dir=None, image_size=(32, 32), domain_key="set", label_key="label",
                 classes=454),
        )  # fmt: skip
    parts = [set(one) for one in config.data.domains.values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 4  # no designer is in two parts


def test_taxonomies_are_unicodes(monkeypatch):
    config = compare_glyphs.get_config()
    names = ("7", "À", "ő", "Ω", "Ж", "Ա", "ა", "→", "∀")
    assert relations.taxonomy(config, names) == [
        "Basic Latin", "Latin-1 Supplement", "Latin Extended-A", "Greek and Coptic", "Cyrillic",
        "Armenian", "Georgian", "Arrows", "Mathematical Operators",
    ]  # fmt: skip
    monkeypatch.setattr(
        relations.data, "groups_of_classes",
        lambda *args, label_key, group_key, **_: {"cat": f"{label_key} {group_key}", "dog": "x"},
    )  # fmt: skip
    assert relations.taxonomy(compare_emoji.get_config(), ["dog", "cat"]) == ["x", "base label"]


@pytest.mark.parametrize(
    ("file", "key", "names", "message"),
    [
        (compare_emoji, "unicode_block", ["grinning face"], "characters, got 'grinning face'"),
        (compare_glyphs, "unicode_block", ["a", "\U0001f600"], "in none of the blocks"),
        (compare_glyphs, "label", ["a"], "expected 'unicode_block': .* data.label_key"),
        (compare_emoji, "grup", ["a"], "key is 'grup': it has 'label', or 'unicode_block' where"),
        (compare_emoji, "label", ["cow"], "of which class 'cow' has none"),
    ],
)  # fmt: skip
def test_a_taxonomy_that_classes_lack_is_refused_before_any_training(
    monkeypatch, file, key, names, message
):
    def groups(*args, group_key, **_):
        if group_key != "label":
            raise data.DataError("it has 'label'")
        return {"cat": "animals"}

    config = file.get_config()
    config.taxonomy.key = key
    opened = SimpleNamespace(train=SimpleNamespace(class_names=names), check=lambda: None)
    monkeypatch.setattr(relations.data, "groups_of_classes", groups)
    monkeypatch.setattr(relations.compare, "TransferEvaluator", lambda *args: opened)
    monkeypatch.setattr(relations.compare.tries, "choose", lambda *_: pytest.fail("tries train"))
    with pytest.raises(UserError, match=message):
        relations.run(config, None)


def test_gates_are_held_against_the_classes_mean_pixels(monkeypatch):
    config, rng = compare_glyphs.get_config(), np.random.default_rng(0)
    config.taxonomy.test.permutations = 19
    names, groups = "abcαβγ", ["Basic Latin"] * 3 + ["Greek and Coptic"] * 3
    gates = jnp.asarray(np.kron(np.eye(2), np.ones((3, 4))) + 0.5 * rng.random((6, 8)))
    labels = jnp.arange(12) % 6
    images, features = (jnp.asarray(rng.standard_normal((12, 5))) for _ in range(2))
    evaluator = SimpleNamespace(model=None, extract=lambda what: ((images, labels), None))
    trained = {
        "hydra": SimpleNamespace(evaluator=evaluator, variables=None),
        "supcon": SimpleNamespace(features=((features, labels), None)),
    }
    checked = SimpleNamespace(train=SimpleNamespace(class_names=names))
    monkeypatch.setattr(relations.compare, "checked", lambda config: checked)
    monkeypatch.setattr(relations.compare, "compare", lambda *_: ({"knn": 0.5}, trained))
    monkeypatch.setattr(relations, "own_gates", lambda *_: gates)
    monkeypatch.setattr(relations.figures, "bars", lambda *_, **options: None)
    monkeypatch.setattr(relations, "draw_groups", lambda *_: None)
    found = relations.run(config, SimpleNamespace(figure=lambda name: None))
    own, supcon, pixels = (
        taxonomy_test(np.asarray(one), groups, permutations=19, seed=config.seed)
        for one in (
            gate_overlap(gates),
            relations.mean_cosines((features, labels), 6),
            relations.mean_cosines((images, labels), 6),
        )
    )
    assert len({own.correlation, supcon.correlation, pixels.correlation, own.null_correlation}) == 4
    assert own.correlation > 0.7
    assert found == {
        "knn": 0.5,
        "taxonomy_groups": 2,
        "taxonomy_correlation": own.correlation,
        "taxonomy_correlation_permuted": own.null_correlation,
        "taxonomy_p": own.p,
        "taxonomy_p_permuted": own.null_p,
        "taxonomy_correlation_supcon": supcon.correlation,
        "taxonomy_p_supcon": supcon.p,
        "taxonomy_correlation_pixels": pixels.correlation,
        "taxonomy_p_pixels": pixels.p,
        "taxonomy_correlation_over_pixels": own.correlation - pixels.correlation,
        "taxonomy_correlation_permuted_over_pixels": own.null_correlation - pixels.correlation,
    }


def test_classes_are_alike_as_their_means_are_about_the_mean_of_all():
    x = jnp.array([[4.0, 1], [2, 3], [5, 2], [1, 2], [3, 9.0]])
    labels = jnp.array([0, 0, 1, 2, 2])
    means = np.array([[3, 2], [5, 2], [2, 5.5]])
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(relations.mean_cosines((x, labels), 3), means @ means.T, atol=1e-5)
