"""Twin-merged encoders from the command line: what is said, what is written, what is refused."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rml
from experiments import merge, merge_atlas, merge_twin
from experiments.merge_twin import of_each
from rml import data
from rml.data import tokens
from rml.data.text import LabelledTexts
from rml.encoder import Encoder, ImageEmbedder
from rml.merging import modularise, twin_params
from rml.models import Bert, Router, route
from rml.models.text_encoder import TextEncoder
from rml.retrieval import TextEmbedder

CONFIG = {"data": {"image_shape": (8, 8, 1), "image_dtype": "uint8", "data_dir": None}}
TASKS = ("left", "right")


def features(variables, images):
    return jnp.tanh(
        images.reshape(images.shape[0], -1) / 255 @ variables["params"]["w"]
        + variables["params"]["b"]
    )


def stacked(models):
    """Parameters of models on a leading axis, stacked by NumPy: that compiles nothing."""
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *models)


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Two encoders of one base, and images of the task of each in files."""
    rng = np.random.default_rng(0)
    start = {"w": 0.3 * rng.normal(size=(64, 12)), "b": 0.1 * rng.normal(size=12)}

    def encoder(scale):
        params = {
            name: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32)
            for name, x in start.items()
        }
        return Encoder("images", CONFIG, "run", 1, ImageEmbedder(features, {"params": params}, 8))

    made = {"base": encoder(0.0), "a": encoder(0.1), "b": encoder(0.1)}
    made["words"] = Encoder("texts", {"data": {}}, "words", 1, made["a"].embedder)
    monkeypatch.setattr(rml, "load", lambda name, **_: made[name], raising=False)
    arguments = ["a", "b", "--base=base", "--method=twin", "--examples=40"]
    for i, task in enumerate(TASKS):
        images = rng.integers(0, 60, (60, 8, 8)).astype(np.uint8)
        label = np.arange(60) % 2
        images[:, :, 4 * i : 4 * i + 4] += 120
        images[label == 1, :4] += 40
        file = tmp_path / f"{task}.npz"
        np.savez(file, image_train=images[:40], label_train=label[:40], image_test=images[40:],
                 label_test=label[40:])  # fmt: skip
        arguments.append(f"--task=npz:{file}")
    return made, arguments


@pytest.mark.slow
def test_a_program_gives_each_image_its_own_parameters(given, tmp_path, capsys):
    made, arguments = given
    out = tmp_path / "twin.stablehlo"
    options = ["--option", "scale=0.4", "--option", "rank=3", "--option", "top=1"]
    assert merge.main([*arguments, *options, "--format=stablehlo", f"--out={out}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(".npz")[0].split("/")[-1] for line in said[:2]] == list(TASKS)
    for line, name in zip(said, "ab", strict=False):
        assert line.index(f" {name} ") < line.index(" shared ") < line.index(" twin ")
    routed = "the router knows the task of 100.0% of the inputs that chose its epoch"
    assert routed in said, said[2]
    # Of a kernel [64, 12] and a bias: one model, 3 (64 + 12) of each expert, and the router.
    numbers = 780 + 2 * (3 * 76 + 12) + (12 * 24 + 24 * 24 + 24 * 2 + 10 * 24 + 2)
    assert f"all parts have {numbers / 780:.2f} times the numbers of one encoder" in said
    program = export.deserialize(bytearray(out.read_bytes()))
    with np.load(tmp_path / "right.npz") as file:
        images = file["image_test"][:5, ..., None]
    found = np.asarray(program.call(images))
    base, experts = made["base"].variables, [made[name].variables for name in "ab"]
    parts = modularise(base, stacked(experts), scale=0.4, rank=3)
    own = features(twin_params(*parts, jnp.array([0.0, 1.0])), images)
    np.testing.assert_allclose(found, own, atol=1e-5)
    assert np.abs(own - features(parts.shared, images)).max() > 0.05
    assert json.loads((tmp_path / "twin.stablehlo.json").read_text())["width"] == 12
    assert merge.main([*arguments, "--format=stablehlo", f"--out={out}"]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_variances_of_normalisation_stay_those_of_encoders(given, tmp_path):
    made, arguments = given
    load_file = pytest.importorskip("safetensors.numpy").load_file
    for name, variance in (("base", 1.0), ("a", 0.1), ("b", 0.3)):
        own = made[name].embedder
        variables = own.variables | {"batch_stats": {"var": jnp.full(12, variance)}}
        function = lambda v, x: features(v, x) / jnp.sqrt(v["batch_stats"]["var"])  # noqa: E731
        made[name] = Encoder("images", CONFIG, "run", 1, ImageEmbedder(function, variables, 8))
    out = tmp_path / "twin.safetensors"
    assert merge.main([*arguments, "--option", "scale=0.8", f"--out={out}"]) == 0
    found = load_file(out)
    np.testing.assert_allclose(found["shared.batch_stats.var"], 0.2, rtol=1e-5)
    vectors = np.stack([np.full(12, -0.1), np.full(12, 0.1)])
    np.testing.assert_allclose(found["exclusive.batch_stats.var"], vectors, rtol=1e-4)
    base, a, b = (made[name].variables["params"]["b"] for name in ("base", "a", "b"))
    np.testing.assert_allclose(
        found["shared.params.b"], base + 0.8 * (a + b - 2 * base), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("top", [None, 1])
def test_weights_are_the_routers_of_shared_features(given, top):
    made, _ = given
    base, experts = made["base"].variables, [made[name].variables for name in "ab"]
    parts = modularise(base, stacked(experts), fraction=0.3)
    router, rng = Router(2), np.random.default_rng(1)
    bright = np.where(np.arange(20) % 2, 255, 60)[:, None, None, None]
    images = jnp.asarray(rng.integers(0, bright, (20, 8, 8, 1)).astype(np.uint8))
    learned = nn.unbox(jax.jit(router.init)(jax.random.key(0), jnp.zeros((2, 12))))
    mean = jnp.mean(router.apply(learned, features(parts.shared, images)), axis=0)
    learned["params"]["out"]["bias"] -= mean  # so that either expert is some image's first
    whole = {"shared": parts.shared, "exclusive": parts.exclusive, "router": learned}
    found = jax.jit(of_each(features, router, top))(whole, images)
    weights = route(router.apply(learned, features(parts.shared, images)), top=top)
    own = jax.jit(lambda w, x: features(twin_params(*parts, w), x[None])[0])
    each = [own(w, x) for w, x in zip(weights, images, strict=True)]
    np.testing.assert_allclose(found, np.stack(each), atol=1e-5)
    assert np.ptp(weights[:, 0]) > 0.01


@pytest.mark.slow
def test_texts_have_their_own_parameters_too(given, tmp_path, monkeypatch, capsys):
    made, _ = given
    words = {"sky": "sun rain snow cloud", "farm": "dog cat cow hen"}
    tokenizer = tokens.train_tokenizer([" ".join(words.values())] * 9, vocabulary=300)
    rng, start = np.random.default_rng(0), np.random.default_rng(1)
    module = TextEncoder(Bert(vocabulary=300, width=8, depth=1, heads=1, mlp=8, positions=16))
    first_text = jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *first_text))
    first = jax.tree.map(lambda x: start.normal(size=x.shape), shapes)
    for name, scale in (("base", 0.0), ("a", 0.2), ("b", 0.2)):
        variables = jax.tree.map(
            lambda x, scale=scale: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32),
            first,
        )
        made[name] = Encoder("texts", {"data": {}}, "run", 1,
                             TextEmbedder(module, variables, tokenizer, 8))  # fmt: skip
    asked = []

    def load_text(name, split, **keys):
        asked.append((name, split, keys["text_key"], keys["label_key"]))
        own = words[name].split()
        label = np.arange(40, dtype=np.int32) % 2
        texts = [" ".join(rng.choice(own[2 * y : 2 * y + 2], 3)) for y in label]
        return LabelledTexts(texts, label, ("one", "two"))

    monkeypatch.setattr(data, "load_text", load_text)
    out = tmp_path / "twin.stablehlo"
    arguments = ["a", "b", "--base=base", "--method=twin", "--task=sky,text=gloss,label=sense",
                 "--task=farm", "--examples=40", "--option", "rank=2", "--option", "top=1",
                 "--format=stablehlo", f"--out={out}"]  # fmt: skip
    assert merge.main(arguments) == 0
    assert {("sky", "train", "gloss", "sense"), ("farm", "test", "", "")} <= set(asked)
    assert "sky,text=gloss,label=sense: a " in capsys.readouterr().out
    base, experts = made["base"].variables, [made[name].variables for name in "ab"]
    program = export.deserialize(bytearray(out.read_bytes()))
    parts = jax.jit(functools.partial(modularise, rank=2))(base, stacked(experts))

    @jax.jit
    def of_both(parts, read, mask):
        return [module.apply(twin_params(*parts, one), read, mask) for one in jnp.eye(2)]

    chosen = []
    for text in ("sun sun rain", "snow cloud", "cow hen cow", "dog cat"):
        read = np.asarray([tokenizer.encode(text).ids], np.int32)
        mask = np.ones(read.shape, bool)
        each = np.stack(of_both(parts, read, mask))
        apart = np.abs(each - np.asarray(program.call(read, mask))).max((1, 2))
        assert apart.min() < 1e-5
        assert apart.max() > 0.01
        chosen.append(int(np.argmin(apart)))
    assert chosen[0] == 0  # of the first task
    assert chosen[-1] == 1


@pytest.mark.parametrize("method", ["twin", "atlas"])
@pytest.mark.parametrize("flag", ["--split=tset", "--read=trian"])
def test_data_of_every_task_is_opened_before_the_work(
    given, monkeypatch, tmp_path, capsys, method, flag
):
    _, arguments = given
    monkeypatch.setattr(merge_twin, "twin", None)
    monkeypatch.setattr(merge_atlas, "atlas", None)
    arguments = [*arguments, f"--method={method}", flag, f"--out={tmp_path / 'x'}"]
    assert merge.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"there is no split {flag.partition('=')[2]!r}" in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--task": 1}, "--task is given 1 times, expected 2"),
        ({"--task": 0}, "--method=twin with --task=nothing, expected a task for each encoder"),
        ({"method": "average"}, "--method=average with --task="),
        ({"more": ["--data=digits"]}, "--data is digits, expected --task alone"),
        ({"more": ["--option", "top=3"]}, "top is 3, expected 1 to 2"),
        ({"more": ["--option", "top=1.5"]}, "top is 1.5, expected a whole number"),
        ({"more": ["--option", "rank=2.5"]}, "rank is 2.5, expected a whole number"),
        ({"more": ["--option", "rank=50"]}, "rank is 50"),
        ({"more": ["--option", "keep=1"]}, "twin has no option 'keep', expected one of: scale"),
        ({"more": ["--option", "compress=zip"]}, "unknown compress 'zip'"),
        ({"more": ["--examples=41"]}, "--examples=41, expected 1 to the 40 images of train"),
        ({"more": ["--examples=4"]}, "--examples=4, expected at least 5: the last of every 5"),
        (
            {"more": ["--task=x,text"], "--task": 1},
            "--task is 'x,text', expected NAME, or NAME,text",
        ),
        (
            {"more": ["--task=x,text=y"], "--task": 1},
            "--text is for encoders of texts, these are of images",
        ),
        ({"base": ""}, "--method=twin needs --base"),
        ({"base": "words"}, "encoders are of images and texts, expected of one kind"),
    ],
)
def test_mistakes_are_told_in_one_line(given, change, message, tmp_path, capsys):
    _, arguments = given
    out = tmp_path / "twin.safetensors"
    tasks = [one for one in arguments if one.startswith("--task")][: change.get("--task", 2)]
    method, base = change.get("method", "twin"), change.get("base", "base")
    flags = [f"--method={method}", f"--base={base}", "--examples=40", f"--out={out}"]
    assert merge.main(["a", "b", *flags, *tasks, *change.get("more", [])]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
