"""Encoders merged from the command line."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments import export, merge, merge_images
from rml import data
from rml.data import tokens
from rml.data.text import LabelledTexts
from rml.encoder import Encoder, ImageEmbedder
from rml.errors import UserError
from rml.models import Bert, ViT, WidthMap, map_width
from rml.models.text_encoder import TextEncoder
from rml.retrieval import TextEmbedder


def encoder(seed, scale=0.1, *, width=3):
    rng, common = np.random.default_rng(seed), np.random.default_rng(0)
    w = common.normal(size=(64, width)) + scale * rng.normal(size=(64, width))
    embedder = ImageEmbedder(
        lambda v, x: x.reshape(len(x), -1).astype(jnp.float32) @ v["params"]["w"],
        {"params": {"w": jnp.asarray(w, jnp.float32)}}, 64,
    )  # fmt: skip
    config = {"data": {"image_shape": (8, 8, 1), "image_dtype": "uint8", "data_dir": None}}
    return Encoder("images", config, f"run{seed}", 1, embedder)


@pytest.fixture
def runs(monkeypatch):
    made = {"base": encoder(0, 0.0), "a": encoder(1), "b": encoder(2), "far": encoder(3, 5.0),
            "wide": encoder(4, width=4)}  # fmt: skip
    monkeypatch.setattr(rml, "load", lambda name, **options: made[options.get("expert", name)],
                        raising=False)  # fmt: skip
    rng = np.random.default_rng(5)
    source = data.ArraySource(
        rng.integers(0, 255, (20, 8, 8, 1)).astype(np.uint8), np.arange(20) % 2,
        class_names=("even", "odd"),
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *_, **__: source)
    return made


@pytest.mark.slow
def test_two_encoders_are_merged_judged_and_written(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    out = tmp_path / "merged.safetensors"
    given = ["bed,expert=a", "b", "--base=base", "--method=task_arithmetic", "--option",
             "scale=0.7", "--data=digits", f"--out={out}"]  # fmt: skip
    assert merge.main(given) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:3]] == ["bed,expert=a", "b", "merged"]
    base, a, b = (np.asarray(runs[name].variables["params"]["w"]) for name in ("base", "a", "b"))
    (found,) = load_file(out).values()
    np.testing.assert_allclose(found, base + 0.7 * (a + b - 2 * base), atol=1e-5)
    assert merge.main(given) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_encoders_of_texts_are_judged_by_texts(monkeypatch, tmp_path, capsys):
    tokenizer = tokens.train_tokenizer(["sun rain snow dog cat cow"] * 9, vocabulary=300)
    rng = np.random.default_rng(0)
    module = TextEncoder(Bert(vocabulary=300, width=8, depth=1, heads=1, mlp=8, positions=16))
    given = (jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *given))

    def made(scale):
        variables = jax.tree.map(
            lambda x: jnp.asarray(1 + scale * rng.normal(size=x.shape), x.dtype), shapes
        )
        return Encoder("texts", {"data": {}}, "run", 1,
                       TextEmbedder(module, variables, tokenizer, 8))  # fmt: skip

    named = {name: made(0.1) for name in ("a", "b", "base")}
    monkeypatch.setattr(rml, "load", lambda name, **_: named[name], raising=False)
    label = np.arange(40, dtype=np.int32) % 2
    texts = [("sun rain", "dog cat cow")[own] for own in label]
    asked = []

    def load_text(name, split, **keys):
        asked.append((name, split, keys))
        return LabelledTexts(texts, label, ("sky", "farm"))

    monkeypatch.setattr(data, "load_text", load_text)
    out = tmp_path / "merged.safetensors"
    arguments = ["a", "b", "--base=base", "--method=average", "--data=debian", "--text=synopsis",
                 "--label=section", f"--out={out}"]  # fmt: skip
    tokens_beside = tmp_path / "merged.safetensors.tokenizer.json"
    tokens_beside.write_text("mine")
    assert merge.main(arguments) == 1
    assert f"{tokens_beside} exists and is not overwritten" in capsys.readouterr().err
    assert asked == []
    tokens_beside.unlink()
    assert merge.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [f"{name}: 100.0% are right by 10 nearest neighbours"
                        for name in ("a", "b", "merged")]  # fmt: skip
    keys = {"text_key": "synopsis", "label_key": "section", "data_dir": None}
    assert asked == [("debian", "test", keys)] * 4  # once before the work
    assert out.exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("bed,expert=a", ("bed", {"expert": "a"})),
        ("runs/bed,expert=a", ("runs/bed", {"expert": "a"})),
        ("sweep/rate=0.1,steps=4/seed0", ("sweep/rate=0.1,steps=4/seed0", {})),
        (
            "sweep/rate=0.1,steps=4/seed0,expert=a",
            ("sweep/rate=0.1,steps=4/seed0", {"expert": "a"}),
        ),
        ("sweep/rate=0.1,steps=4", ("sweep/rate=0.1,steps=4", {})),
        ("weights:hf:/models/one", ("weights:hf:/models/one", {})),
    ],
)
def test_commas_in_the_path_of_a_run_are_no_options(monkeypatch, tmp_path, name, found):
    (tmp_path / "sweep/rate=0.1,steps=4/seed0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rml, "load", lambda path, **options: (path, options), raising=False)
    assert merge.open_named(name) == found


@pytest.mark.slow
def test_an_encoder_that_is_named_twice_counts_twice_as_a_file_does(runs, tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    out, data = tmp_path / "merged.safetensors", "--data=digits"
    assert merge.main(["a", "a", "b", "--method=average", data, f"--out={out}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:4]] == ["a", "a (2)", "b", "merged"]
    a, b = (np.asarray(runs[name].variables["params"]["w"]) for name in "ab")
    (found,) = safetensors.load_file(out).values()
    np.testing.assert_allclose(found, (2 * a + b) / 3, atol=1e-6)
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file, own in zip(files, (a, b), strict=True):
        safetensors.save_file({"w": own}, file)
    given = [str(files[0]), *map(str, files), "--method=average"]
    assert merge.main([*given, f"--out={tmp_path / 'files.safetensors'}"]) == 0
    (other,) = safetensors.load_file(tmp_path / "files.safetensors").values()
    np.testing.assert_allclose(other, found, atol=1e-6)


@pytest.mark.parametrize("command", [merge.main, export.main])
@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_a_card_that_is_there_is_named_before_an_encoder_is_loaded(
    monkeypatch, tmp_path, capsys, command, kind
):
    monkeypatch.setattr(rml, "load", None, raising=False)
    card = tmp_path / "out.json"
    card.write_text("mine")
    names = ["a", "b", "--method=average"] if command is merge.main else ["a"]
    assert command([*names, f"--format={kind}", f"--out={tmp_path / 'out'}"]) == 1
    assert f"{card} exists and is not overwritten" in capsys.readouterr().err
    card.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command([*names, f"--format={kind}", f"--out={tmp_path / 'out'}"]) == 1
    assert "this format needs the package" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["fisher", "regmean", "ot", "average"])
def test_data_to_judge_by_is_opened_before_the_work(runs, monkeypatch, tmp_path, capsys, method):
    whole = data.load

    def load(name, split, **keys):
        if split == "tset":
            raise UserError("there is no split 'tset'")
        return whole(name, split, **keys)

    monkeypatch.setattr(data, "load", load)
    for work in ("fisher", "grams", "fused"):
        monkeypatch.setattr(merge_images, work, None)
    monkeypatch.setattr(merge, "merge_encoders", None)
    given = ["a", "b", f"--method={method}", "--data=d", "--split=tset", f"--out={tmp_path / 'x'}"]
    assert merge.main(given) == 1
    assert capsys.readouterr().err == "error: there is no split 'tset'\n"


BASE, DATA = "--base=base --method=", "--data=d --examples=16 --method="
OPTIONS = [
    (f"{BASE}dare", "dare needs --option key=VALUE"),
    (f"{BASE}weighted_average", "weighted_average needs --option weights=VALUE"),
    (f"{BASE}ties --option=keep=7", "keep is 7, expected a number in (0, 1]"),
    (f"{BASE}ties --option=keep=0.5,0.5", "keep is [0.5, 0.5], expected one number"),
    (f"{BASE}ties --option=disjoint=foo", "unknown disjoint 'foo'"),
    (f"{BASE}dare --option=key=nan", "--option is 'key=nan', expected finite numbers"),
    (f"{BASE}dare --option=key=0.5", "--option is 'key=0.5', expected a whole number"),
    (f"{BASE}dare --option=key=1,2", "--option is 'key=1,2', expected a whole number"),
    (f"{BASE}dare --option=key=0 --option=rate=nan", "'rate=nan', expected finite numbers"),
    (f"{BASE}dare --option=key=0 --option=rate=1", "rate is 1, expected a number in [0, 1)"),
    (f"{BASE}task_arithmetic --option=scale=inf", "'scale=inf', expected finite numbers"),
    (f"{BASE}task_arithmetic --option=scale=mean", "scale is 'mean', expected a number"),
    (f"{BASE}task_arithmetic --option=scale=1,2,3", "scale is [1.0, 2.0, 3.0], expected one"),
    (f"{DATA}fisher --option=floor=-1", "floor is -1, expected a number of at least 0"),
    (f"{DATA}regmean --option=averaged=(", "averaged is '(', expected a regular expression"),
    (f"{DATA}ot --option=scale=2", "scale is 2.0, expected a word"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--out=x"], "--method=task_arithmetic needs --base"),
        (
            ["a", "b", "--method=average", "--data=digits", "--text=gloss", "--out=x"],
            "--text is for encoders of texts, these are of images",
        ),
        (["a", "b", "--method=fisher", "--out=x"], "--method=fisher needs --data"),
        (["a", "b", "--method=regmean", "--out=x"], "--method=regmean needs --data"),
        (
            ["a", "b", "--method=regmean", "--data=d", "--out=x", "--examples=16"],
            "a has no module, expected one whose layers' inputs can be read",
        ),
        (["a", "b", "--method=ot", "--data=d", "--base=base", "--out=x"], "it reads no base"),
        (["a", "b", "--method=ots", "--out=x"], "unknown method 'ots'; did you mean 'ot'"),
        (["a", "b", "--method=ot", "--data=d", "--out=x", "--examples=16"], "a has no ViT and no"),
        (
            ["a", "b", "--method=ot", "--data=d", "--out=x", "--examples=21"],
            "--examples=21, expected 1 to the 20 images of train",
        ),
        (
            ["a", "b", "--method=ot", "--data=d", "--out=x", "--option", "keep=1"],
            "ot has no option 'keep'",
        ),
        (
            ["a", "b", "--method=fisher", "--data=d", "--out=x", "--option", "fishers=1"],
            "fisher has no option 'fishers'",
        ),
        (["a", "b"], "no --out"),
        (["a", "b", "--out=gs://b/x"], "--out is 'gs://b/x', a URL"),
        (
            ["gs://b/a.safetensors", "--method=average", "--out=x"],
            "ENCODER is 'gs://b/a.safetensors', a URL",
        ),
        (
            ["~n0body/a.safetensors", "--method=average", "--out=x"],
            "ENCODER is '~n0body/a.safetensors', but ~n0body is no user here",
        ),
        (["a.safetensors", "--base=gs://b/c.safetensors", "--out=x"], "--base is 'gs://b/c.safe"),
        (["a", "wide", "--base=base", "--out=x"], "leaf 'params.w' of wide is [64, 4], expected"),
        (["a", "far", "--base=base", "--out=x"], "was it fine-tuned from another base"),
        (["a", "--base=base", "--option", "keep=1", "--out=x"], "has no option 'keep'"),
        (["a", "--base=base", "--option", "scale", "--out=x"], "expected NAME=NUMBER"),
        (
            ["a", "b", "--method=weighted_average", "--option=weights=0.5", "--out=x"],
            "weights is 0.5, expected one for each of 2 experts",
        ),
        *((["a", "b", *own.split(), "--out=x"], message) for own, message in OPTIONS),
    ],
)
def test_mistakes_are_told_in_one_line(runs, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert merge.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_weights_by_their_path_are_no_url(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert merge.main(["weights:/absent", "--method=average", "--out=x"]) == 1
    assert "unknown weights '/absent'" in capsys.readouterr().err


def test_a_scale_is_a_word_of_transport_and_a_number_of_others():
    word, number = (dict([merge.option_of(f"scale={value}")]) for value in ("mean", "0.5"))
    assert (word, number) == ({"scale": "mean"}, {"scale": 0.5})
    merge.check_options("ot", word)
    merge.check_options("task_arithmetic", number)
    with pytest.raises(UserError, match="scale is 'mean', expected a number"):
        merge.check_options("task_arithmetic", word)
    with pytest.raises(UserError, match=r"scale is 0.5, expected a word"):
        merge.check_options("ot", number)


class Wrapped(nn.Module):
    """A transformer below a head, as encoders of runs have it."""

    @nn.compact
    def __call__(self, x):
        vit = ViT(width=8, depth=2, heads=2, mlp_ratio=2, patch_size=4, name="backbone")
        return vit(x.astype(jnp.float32) / 255)


def transformer(module, variables):
    config = {"data": {"image_shape": (8, 8, 1), "image_dtype": "uint8", "data_dir": None}}
    return Encoder("images", config, "run", 1, ImageEmbedder(module.apply, variables, 64))


@pytest.mark.slow
def test_units_in_another_order_are_found_and_the_function_stays(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    module, rng = Wrapped(), np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    first = jax.tree.map(lambda leaf: np.float32(0.2 + 0.6 * rng.normal(size=leaf.shape)), shapes)

    def moved():
        order = np.eye(16, dtype=np.float32)[rng.permutation(16)]
        return {"params": map_width(first["params"], {"mlp": WidthMap(order, order)})}

    other, third = moved(), moved()
    # All but a bias of one, which no unit is compared by, are equal.
    bias = third["params"]["backbone"]["norm"]["bias"]
    third["params"]["backbone"]["norm"]["bias"] = bias + 0.9
    for name, own in (("one", first), ("two", other), ("three", third)):
        runs[name] = transformer(module, own)
    out, images = tmp_path / "fused.safetensors", jnp.asarray(rng.integers(0, 255, (3, 8, 8, 1)))
    options = {"solver": "exact", "heads": "kept", "query_key": "shared", "residual": "shared"}
    flags = [word for own in options.items() for word in ("--option", "=".join(own))]
    given = ["three", "one", "two", "--method=ot", "--data=d", "--examples=20", f"--out={out}"]
    assert merge.main([*given, *flags]) == 0
    assert "merged: " in capsys.readouterr().out
    found = load_file(out)
    # The anchor is the last, which nothing moved; of three each counts a third.
    for path, leaf in jax.tree_util.tree_leaves_with_path(other):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        added = 0.3 if name == "params.backbone.norm.bias" else 0.0
        np.testing.assert_allclose(found[name], leaf + added, atol=1e-4)
    plain = jax.tree.map(lambda a, b: (a + b) / 2, first, other)
    y, vanilla = (jax.jit(module.apply)(own, images) for own in (first, plain))
    assert np.abs(y - vanilla).max() > 0.1
    runs["nan"] = transformer(module, jax.tree.map(lambda leaf: leaf * np.nan, first))
    broken = ["one", "nan", *given[3:-1], f"--out={tmp_path / 'x'}"]
    assert merge.main(broken) == 1
    assert "of nan holds NaN" in capsys.readouterr().err


class Tower(nn.Module):
    """Two layers, and a head that features do not take."""

    def setup(self):
        self.body, self.out, self.head = nn.Dense(4), nn.Dense(3), nn.Dense(2)

    def features(self, x):
        return self.out(jnp.tanh(self.body(x.reshape(len(x), -1) / 255)))

    def __call__(self, x):
        return self.head(self.features(x))


@pytest.mark.slow
def test_layers_are_merged_by_what_they_read_of_images(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    module, images = Tower(), data.load("d", "train").arrays()["image"]
    config = encoder(0).config
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = []
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        variables = jax.tree.map(lambda leaf, rng=rng: rng.normal(0, 0.3, leaf.shape), shapes)
        params.append(variables["params"])
        own = ImageEmbedder(lambda v, x: module.apply(v, x, method=module.features),
                            jax.tree.map(jnp.float32, variables), 64)  # fmt: skip
        runs[name] = Encoder("images", config, name, 1, own)
    out = tmp_path / "merged.safetensors"
    given = ["one", "two", "--method=regmean", "--data=d", "--examples=20", f"--out={out}"]
    assert merge.main(given) == 1
    assert "no matrix for 'params.head.kernel'" in capsys.readouterr().err
    assert merge.main([*given, "--option", "averaged=head", "--option", "alpha=0.5"]) == 0
    found = load_file(out)
    x = np.asarray(images, np.float64).reshape(20, -1) / 255
    hidden = [np.tanh(x @ own["body"]["kernel"] + own["body"]["bias"]) for own in params]
    gram = np.stack([h.T @ h for h in hidden]) * (1 + np.eye(4)) / 2
    kernel = np.linalg.solve(gram.sum(0), sum(
        g @ own["out"]["kernel"] for g, own in zip(gram, params, strict=True)
    ))  # fmt: skip
    np.testing.assert_allclose(found["params.out.kernel"], kernel, atol=1e-3)
    mean = {name: (params[0][name]["kernel"] + params[1][name]["kernel"]) / 2 for name in params[0]}
    # Both read the same images, so that the first kernel is the average.
    np.testing.assert_allclose(found["params.body.kernel"], mean["body"], atol=1e-5)
    assert np.abs(kernel - mean["out"]).max() > 0.1


@pytest.mark.slow
def test_fishers_are_those_of_a_head_of_class_means(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    out, images = tmp_path / "merged.safetensors", data.load("d", "train").arrays()["image"]
    given = ["a", "b", "--method=fisher", "--data=d", "--examples=20", f"--out={out}"]
    assert merge.main([*given, "--option", "weights=0.3,0.7"]) == 0
    (found,) = load_file(out).values()
    x = np.asarray(images, np.float64).reshape(20, -1)
    fishers, kernels = [], []
    for name in ("a", "b"):
        w = np.asarray(runs[name].variables["params"]["w"], np.float64)
        f = x @ w
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        means = np.stack([f[i::2].mean(0) for i in range(2)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        total = np.zeros_like(w)
        for one, image in zip(f, x, strict=True):
            logits = 20 * means @ one
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            inside = np.eye(3) - np.outer(one, one)  # of unit length
            for y in range(2):
                slope = 20 * inside @ (means[y] - p @ means) / np.linalg.norm(image @ w)
                total += p[y] * np.outer(image, slope) ** 2 / 20
        fishers.append(total)
        kernels.append(w)
    own = [w / np.linalg.norm(f) for w, f in zip((0.3, 0.7), fishers, strict=True)]
    shares = [own[0] * np.maximum(fishers[0], 1e-6), own[1] * fishers[1]]
    wanted = (shares[0] * kernels[0] + shares[1] * kernels[1]) / (shares[0] + shares[1])
    assert np.abs(wanted - (0.3 * kernels[0] + 0.7 * kernels[1])).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.slow
def test_statistics_have_no_fisher_and_are_averaged_by_the_weights(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    for name, mean in (("a", 1.0), ("b", 3.0)):
        variables = runs[name].variables | {"batch_stats": {"mean": jnp.asarray([mean])}}
        own = ImageEmbedder(
            lambda v, x: x.reshape(len(x), -1) @ v["params"]["w"] - v["batch_stats"]["mean"],
            variables, 64,
        )  # fmt: skip
        runs[name] = Encoder("images", runs[name].config, name, 1, own)
    given = ["a", "b", "--method=fisher", "--data=d", "--examples=4"]
    for i, (options, wanted) in enumerate((
        ([], 2.0), (["weights=0.25,0.75"], 2.5), (["exclude=batch_stats"], 1.0)
    )):  # fmt: skip
        out = tmp_path / f"{i}.safetensors"
        flags = [word for own in options for word in ("--option", own)]
        assert merge.main([*given, *flags, f"--out={out}"]) == 0
        found = load_file(out)
        np.testing.assert_allclose(found["batch_stats.mean"], [wanted], rtol=1e-6)
        means = [np.asarray(runs[name].variables["params"]["w"]) for name in ("a", "b")]
        assert np.abs(found["params.w"] - sum(means) / 2).max() > 0.005
