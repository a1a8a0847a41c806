"""The papers' own ablations in quick form: their variants, programs and comparisons.

`make claims` measures them in full.
"""

import importlib
import itertools
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import rml
from configs.contrastive import clip_icons, siglip_icons
from experiments.common.evaluators import ImageEvaluator
from experiments.common.images import open_images
from experiments.common.many import unstack
from experiments.common.pretraining import train
from experiments.common.variants import BASE, in_order, variant, written
from experiments.contrastive import ablation, ablation_figures, named_drawings, two_towers
from experiments.hydra import ablation as hydra_ablation
from experiments.ranges import Range
from experiments.registry import find_experiment
from rml.errors import UserError
from rml.training import RunDirectory, make_mesh, use_mesh
from tests.system.two_steps import override

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "fashion": {
        ("base", "temperature_0_05", "temperature_0_5", "temperature_1"), ("batch_64",),
        ("linear_head",), ("deep_head",), ("erased_only",), ("not_erased",),
    },
    "barlow_twins_fashion": {
        ("base", "redundancy_0", "redundancy_0_0005", "redundancy_0_05"),
        ("width_32",), ("width_1024",), ("batch_64",), ("erased_only",),
    },
    "vicreg_fashion": {
        ("base", "no_variance", "no_covariance", "no_invariance", "invariance_only",
         "equal_weights"),
        ("expander_32",), ("expander_1024",), ("batch_64",),
    },
    "dcl_fashion": {
        ("base", "temperature_0_05", "temperature_0_5"), ("dcl",), ("nt_xent",), ("dcl_64",),
        ("nt_xent_64",), ("dcl_32",), ("nt_xent_32",),
    },
    "supcon_fashion": {
        ("base", "temperature_0_05", "temperature_0_5", "temperature_1"), ("form_in",),
        ("batch_64",), ("linear_head",), ("erased_only",),
    },
    "moco_v3_fashion": {
        ("base", "momentum_0", "momentum_0_9", "momentum_0_999"), ("trained_patches",),
        ("learned_positions",), ("no_predictor",), ("batch_64",),
    },
    "moco_v3_heads_fashion": {
        ("base", "temperature_0_1", "temperature_1"), ("linear_head",), ("no_batch_norm",),
    },
    "siglip_icons": {
        ("base", "bias_0", "temperature_1"), ("no_bias",), ("fixed_temperature",), ("batch_32",),
        ("softmax",), ("softmax_32",),
    },
    "clip_icons": {
        ("base", "learned_from_1"), ("fixed_1", "fixed_0_07", "fixed_0_01"), ("batch_32",),
        ("batch_64",), ("linear_head",),
    },
}  # fmt: skip
"""By config, the variants that each program trains."""
MLP = dict(name="mlp", hidden=(12,), features=12)
SMALL = {
    "data.name": "digits", "data.image_shape": (8, 8, 1), "data.train": "train[:100]",
    "data.test": "test[:50]", "augment.order": ("random_erase",), "model": MLP,
    "head.layers": 1, "head.features": 8, "seeds": 2, "evaluation.batch_size": 128,
    "train.batch_size": 32, "train.steps": 4, "train.checkpoint_every": 0, "train.log_every": 1,
    "optimizer.warmup_steps": 1,
}  # fmt: skip
QUICK = {
    "fashion": {
        "temperature_1": "loss.temperature=1.0", "linear_head": "head.features=6",
        "erased_only": "",
    },
    "barlow_twins_fashion": {"redundancy_0": "loss.redundancy=0.0", "width_32": "", "batch_64": ""},
    "vicreg_fashion": {
        "no_variance": "loss.variance=0.0", "no_covariance": "loss.covariance=0.0",
    },
    "dcl_fashion": dict.fromkeys(
        ("dcl", "dcl_64", "dcl_32", "nt_xent", "nt_xent_64", "nt_xent_32"), ""
    ),
    "supcon_fashion": {"temperature_1": "loss.temperature=1.0", "form_in": "", "batch_64": ""},
    "moco_v3_fashion": {
        "momentum_0": "momentum.start=0.0", "trained_patches": "", "no_predictor": "",
    },
    "moco_v3_heads_fashion": {
        "temperature_1": "loss.temperature=1.0", "linear_head": "", "no_batch_norm": "",
    },
    "siglip_icons": {
        "bias_0": "loss.bias=0.0", "no_bias": "", "batch_32": "", "softmax": "", "softmax_32": "",
    },
    "clip_icons": {
        "fixed_0_07": "", "fixed_1": "loss.log_scale=0.0", "batch_32": "", "batch_64": "",
        "linear_head": "",
    },
}  # fmt: skip
"""By config, the variants that its claims name, some of which are trained as the base is."""
TOWERS = {
    "head.features": 8, "tokens.vocabulary": 300, "tokens.max_length": 4, "augment.order": (),
    "text": dict(depth=1, heads=2, mlp=8, dropout=0.0, remat=False),
}  # fmt: skip
MOCO_V3 = {
    "predictor.features": 8,
    "predictor.hidden": 12,
    "augment_second.order": ("random_erase",),
}
MORE = {
    "vicreg_fashion": {"train.steps": 60, "optimizer.learning_rate": 0.02},
    "moco_v3_fashion": MOCO_V3, "moco_v3_heads_fashion": MOCO_V3,
    "siglip_icons": TOWERS, "clip_icons": TOWERS,
}  # fmt: skip


def read(name):
    return importlib.import_module(f"configs.contrastive.ablation_{name}").get_config()


def variants_of(config):
    return {name: variant(config, name) for name in (BASE, *config.variants)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_variants_that_differ_in_numbers_share_a_program(name):
    config = read(name)
    groups = ablation.programs(variants_of(config))
    assert {tuple(sorted(names)) for names in groups} == {
        tuple(sorted(names)) for names in PROGRAMS[name]
    }
    for own in variants_of(config).values():
        share = config.train.batch_size / own.train.batch_size
        assert own.train.steps == share * config.train.steps  # as many images
        assert own.optimizer.warmup_steps == share * config.optimizer.warmup_steps
        rate = config.optimizer.learning_rate / own.optimizer.learning_rate
        assert rate**2 == pytest.approx(share, rel=0.01)
    named = (BASE, ablation.UNTRAINED, ablation.AGAIN, *config.variants)
    for claim in find_experiment(config.experiment).CLAIMS:
        for metric in (claim.metric, claim.null):
            assert metric.endswith(tuple(f"_{end}" for end in named)), metric


@pytest.mark.parametrize("recipe", [ablation, hydra_ablation])
@pytest.mark.parametrize("name", ["again", "base", "untrained"])
def test_names_of_the_comparison_itself_are_no_variants(recipe, name):
    config = read("fashion")
    config.variants = {name: "loss.temperature=0.5"}
    with pytest.raises(UserError, match=rf"variants\.{name} has a name that the comparison"):
        recipe.run(config, None)


def test_a_key_alone_is_left_out():
    config = read("moco_v3_fashion")
    assert "predictor" not in variant(config, "no_predictor")
    config.variants = dict(both="head.hidden loss.temperature=0.5", wrong="head.wrong")
    changed = variant(config, "both")
    assert set(config.head) - set(changed.head) == {"hidden"}
    assert (changed.loss.temperature, config.head.hidden) == (0.5, 256)
    with pytest.raises(UserError, match="expected key=value with a key of the config"):
        variant(config, "wrong")


def test_parts_of_a_tuple_have_the_type_of_those_that_are_there():
    config = ConfigDict(
        dict(experiment="contrastive.simclr", scale=(0.1, 1.0), shape=(28, 28, 1), names=("a",),
             none=(), whole=(True, False), mixed=(1, "a"))
    )  # fmt: skip
    config.variants = dict(
        some="scale=0.25,1 shape=32,32,3 names=b,c none=d,e whole=False,True",
        wrong="shape=32,x,3", other="mixed=1,b",
    )  # fmt: skip
    changed = variant(config, "some")
    assert changed.scale == (0.25, 1.0)
    assert changed.shape == (32, 32, 3)
    assert (changed.names, changed.none, changed.whole) == (("b", "c"), ("d", "e"), (False, True))
    for name in ("wrong", "other"):
        with pytest.raises(UserError, match=r"expected a value of type tuple like \("):
            variant(config, name)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("fashion", "loss.name=nt_xant", "did you mean 'nt_xent'"),
        (
            "fashion",
            "loss.temperature=-1.0",
            r"variants\.wrong is .*temperature is -1\.0, expected",
        ),
        ("fashion", "train.batch_size=0", r"variants\.wrong is .*batch_size is 0, expected"),
        ("fashion", "train.batch_size=1", "batch_size is 1, expected a whole number of at least 2"),
        ("supcon_fashion", "loss.form=inn", r"variants\.wrong is .*did you mean 'in'"),
    ],
)
def test_a_mistake_in_a_variant_is_told_before_the_first_program_trains(
    monkeypatch, name, change, expected
):
    config = override(read(name), SMALL)
    config.variants = dict(right="head.features=12", wrong=change)
    monkeypatch.setattr(ablation, "for_each", lambda *args: pytest.fail("a program trains"))
    with pytest.raises(UserError, match=expected):
        find_experiment(config.experiment).run(config, None)


def test_a_recipes_own_ranges_hold_for_variants(monkeypatch):
    config = override(read("fashion"), SMALL)
    config.variants = dict(wrong="loss.temperature=3.0")
    monkeypatch.setattr(ablation, "for_each", lambda *args: pytest.fail("a program trains"))
    recipe = find_experiment(config.recipe)
    monkeypatch.setattr(recipe, "RANGES", {"loss.temperature": Range(high=2)})
    with pytest.raises(UserError, match=r"temperature is 3\.0, expected a number in \[0, 2\]"):
        ablation.run(config, None)


def test_a_decimal_number_in_a_variants_name_is_written_as_one():
    names = ("momentum_0_999", "queue_256", "batch_64_slow", "no_1_by_1")
    assert [*map(written, names)] == ["momentum 0.999", "queue 256", "batch 64 slow", "no 1 by 1"]


def test_figures_list_the_base_and_then_rising_numbers():
    names = ("queue_8192", "batch_64", "queue_256", "momentum_0_99", "momentum_0_9", BASE)
    found = ["base", "batch 64", "momentum 0.9", "momentum 0.99", "queue 256", "queue 8192"]
    assert [*map(written, in_order(names))] == found


def test_a_number_that_is_not_learned_has_no_gradient():
    def gradient(*learned):
        return jax.grad(lambda x: sum(two_towers.learnable(learned, x[0], 3 * x[1])))([1.0, 1.0])

    assert gradient("bias") == [0, 3]
    assert gradient("log_scale") == [1, 0]
    config = siglip_icons.get_config()
    config.loss.learned = ("log_scale", "scale")
    with pytest.raises(UserError, match="'scale'"):
        two_towers.task(config)


def test_a_bias_that_a_softmax_ignores_is_refused():
    config = clip_icons.get_config()
    assert two_towers.task(config).batch_spec["label"].shape == (config.train.batch_size,)
    config.loss.bias = 5.0
    with pytest.raises(UserError, match=r"loss\.bias is 5\.0 .* no bias changes; expected 0\.0"):
        two_towers.task(config)


def test_words_are_lent_by_the_nearest_images():
    seen = np.zeros((3, 1, 2, 1), np.uint8)
    seen[:, 0, :, 0] = [[200, 100], [20, 10], [0, 90]]  # by direction the first two are level
    image = np.array([[[[22], [8]]]], np.uint8)
    assert named_drawings.lent(image, ["far", "near", "other"], seen, k=2) == ["near other"]
    assert named_drawings.lent(image, ["far", "near", "other"], seen, k=9) == ["near other far"]


@pytest.mark.slow
def test_names_of_test_drawings_are_found_by_lent_words(measure, monkeypatch):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def names(drawings, part):  # of two test drawings in three, the name is its class's
        labels = open_images(config, part, labelled=True).arrays()["label"]
        unseen = [part == "test" and i % 3 == 0 for i in range(len(labels))]
        return [
            f"foo{i}" if new else words[label]
            for i, (label, new) in enumerate(zip(labels, unseen, strict=True))
        ]

    monkeypatch.setattr(named_drawings.Drawings, "names", names)
    monkeypatch.setattr(named_drawings.Drawings, "classes", words)
    changes = SMALL | MORE["siglip_icons"] | {"data.train": "train[:400]"}
    del changes["seeds"]
    config = override(siglip_icons.get_config(), changes)
    found = named_drawings.judge_words(config, named_drawings.Drawings(config))
    recall = found[f"recall_at_{named_drawings.NEAREST}"]
    assert not recall[::3].any()
    assert found["zero_shot"].mean() > 0.9
    assert (recall >= found["zero_shot"])[np.arange(len(recall)) % 3 != 0].all()
    metrics, holds = measure("configs/contrastive/siglip_icons.py", changes)
    assert len(holds) == len(two_towers.CLAIMS)
    for kind, right in found.items():
        assert metrics[f"{kind}_words"] == right.mean() > metrics[kind]
        for other in ("words", "untrained"):
            margin = metrics[kind] - metrics[f"{kind}_{other}"]
            assert metrics[f"{kind}_over_{other}"] == margin


def test_one_hit_among_the_nearest_is_right():
    test = {"label": np.array([2, 0]), "name": np.array([7, 5])}
    found = named_drawings.right(test, [[2], [1]], [[3, 7], [7, 3]])
    assert named_drawings.shares(found) == {
        "zero_shot": 0.5,
        f"recall_at_{named_drawings.NEAREST}": 0.5,
    }
    assert found["zero_shot"].tolist() == found[f"recall_at_{named_drawings.NEAREST}"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changed"),
    [("supcon_fashion", "form_in"), ("dcl_fashion", "dcl"), ("dcl_fashion", "nt_xent_32"),
     ("moco_v3_fashion", "no_predictor"),
     ("siglip_icons", "no_bias"), ("siglip_icons", "softmax_32"), ("clip_icons", "fixed_0_07")],
)  # fmt: skip
def test_variants_of_another_program_have_a_step(name, changed):
    config = variant(override(read(name), {"model": MLP}), changed)
    task = find_experiment(config.recipe).task(config)
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    with use_mesh(make_mesh()):
        _, metrics = jax.eval_shape(task.step, state, task.batch_spec)
    assert metrics["loss"].shape == ()
    assert ("predictor" in state.params) == (name == "moco_v3_fashion" and "predictor" in config)


@pytest.mark.slow
def test_one_model_of_a_program_is_loaded_by_variant_and_seed(tmp_path):
    """As a run leaves it: the directory of a program, whose config has lists for tuples."""
    variants = {
        "temperature_1": "loss.temperature=1.0", "erased_only": "augment.order=random_erase",
        "linear_head": "head.features=6",
    }  # fmt: skip
    config = override(read("fashion"), SMALL | {"variants": variants, "seed": 1})
    run = RunDirectory(tmp_path, config.to_dict(), config_name="c.py")
    states = {}
    for method in ("program_0", ablation.AGAIN):
        own = ConfigDict(config.to_dict() | {"method": method})
        inner = run.of_method(method)
        states[method] = train(config, inner, ablation.task(own))
        inner.close()
    run.close()
    assert ablation.groups_of(config)["program_0"] == ["base", "erased_only", "temperature_1"]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    recipe = find_experiment(config.recipe)

    def features(method, at, name=BASE):
        state = unstack(states[method], at)
        return recipe.encoder(variant(config, name), state)(images)

    def loaded(method, **options):
        return rml.load(tmp_path / "methods" / method, **options)(images)

    expected = [features("program_0", at) for at in range(6)]
    different = [expected[at] for at in (0, 1, 4, 5)]  # images are erased in the base as well
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(different, 2))
    np.testing.assert_allclose(loaded("program_0"), expected[0], atol=1e-5)
    last = loaded("program_0", variant="temperature_1", seed=1)
    np.testing.assert_allclose(last, expected[5], atol=1e-5)
    middle = loaded("program_0", variant="erased_only", seed=1)
    np.testing.assert_allclose(middle, expected[3], atol=1e-5)
    np.testing.assert_allclose(
        loaded(ablation.AGAIN, seed=1), features(ablation.AGAIN, 1), atol=1e-5
    )
    for options, message in (
        ({"variant": "linear_head"}, "unknown variant of this program 'linear_head'"),
        ({"seed": 2}, "seed is 2, expected 0 to 1"),
        ({"seed": -1}, "seed is -1, expected 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            loaded("program_0", **options)
    with pytest.raises(UserError, match="unknown program of the run 'program_9'"):
        ablation.task(ConfigDict(config.to_dict() | {"method": "program_9"}))


def test_every_ablation_has_the_encoder_of_its_models():
    files = sorted((ROOT / "experiments/contrastive").glob("*ablation.py"))
    assert len(files) > 8
    for file in files:
        assert find_experiment(f"contrastive.{file.stem}").encoder is ablation.encoder


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_recipe_measures_its_claims(measure, monkeypatch, name):
    def names(drawings, part):
        source = open_images(drawings.config, part, labelled=True)
        return [f"number {source.class_names[label]}" for label in source.arrays()["label"]]

    monkeypatch.setattr(named_drawings.Drawings, "names", names)
    # Probes, and what is odd in the data, are looked at elsewhere.
    monkeypatch.setattr(ImageEvaluator, "probe", ImageEvaluator.knn)
    monkeypatch.setattr(ImageEvaluator, "check", lambda evaluator: None)
    experiment, variants = find_experiment(read(name).experiment), QUICK[name]
    changes = SMALL | {"variants": variants} | MORE.get(name, {})
    drawn, dots = [], ablation_figures.figures.dots
    seeds, joined = [], ablation.joined
    monkeypatch.setattr(
        ablation, "joined", lambda *args: [seeds.append(list(args[2])), joined(*args)][1]
    )
    monkeypatch.setattr(
        ablation_figures.figures,
        "dots",
        lambda path, rows, *args: [drawn.extend(rows), dots(path, rows, *args)],
    )
    metrics, holds = measure(f"configs/contrastive/ablation_{name}.py", changes)
    assert all(
        np.isfinite(metrics[metric]) for c in experiment.CLAIMS for metric in (c.metric, c.null)
    )
    kind = next(iter(getattr(experiment, "KINDS", ablation_figures.KINDS).values()))
    for other, change in variants.items():  # the same run has the same features
        assert change or metrics[f"{kind}_over_{other}"] == 0
    assert len(drawn) == 2 + len(variants)
    assert drawn[:2] == ["base", "base, other seeds"]
    (again,) = (own for own in seeds if own != [0, 1])
    assert len(again) == 2
    assert min(again) >= 1000  # which no run has of its own
    assert ("without flips and warps" in drawn) == ("erased_only" in variants)
    if name == "vicreg_fashion":
        assert holds["deviation_base", ">="]
        assert metrics["deviation_no_variance"] < 0.5
