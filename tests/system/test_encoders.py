"""Trained encoders as a user has them: loaded, exported, run elsewhere, given data."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import rml
from configs.contrastive import simclr_digits
from configs.hydra import hydra_digits
from configs.retrieval import contriever_pydocs_random
from experiments import embed, export
from experiments.common.encoders import build_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.common.pretraining import train
from experiments.contrastive import simclr
from experiments.hydra import hydra
from experiments.registry import config_files, defined_names, find_experiment, read_config
from rml.data import load
from rml.data.builders import OURS
from rml.embedding import TextEmbedder, compiled
from rml.encoder import Encoder, ImageEmbedder
from rml.errors import UserError
from rml.models.llama import Llama
from rml.models.text_encoder import TextEncoder
from rml.training import RunDirectory
from tests.disk import full_after
from tests.precision import rounded
from tests.texts import untrained_run

ROOT = Path(__file__).parents[2]
MLP = ConfigDict(dict(name="mlp", hidden=(32,), features=24))
TEXTS = ["What is a comet?", "", "bread and yeast " * 20, "Ümläute", "[CLS] or [SEP]"]

FRESH = """
import sys
import jax
import numpy as np
import rml
from rml.training import make_mesh
from rml.training.processes import split_cpu
split_cpu(2)
images, texts, given, out = sys.argv[1:]
inputs = np.load(given)
encode = rml.load(images)
spread = rml.load(images, mesh=make_mesh())(inputs["images"])
jax.local_devices = lambda: jax.devices()[1:]  # as in the second of two processes
second = rml.load(images)
np.savez(
    out, images=encode(inputs["images"]), width=encode.width, step=encode.step,
    spread=spread, second=second(inputs["images"]),
    places=[device.id for device in second.embedder.mesh.devices.flat],
    texts=rml.load(texts)(inputs["texts"].tolist()),
)
"""
ALONE = """
import importlib.util, json, os, sys
root, given, out = sys.argv[1:]
sys.path = [path for path in sys.path if os.path.realpath(path or ".") != root]
assert importlib.util.find_spec("rml") is None, sys.path
import numpy as np
found = {}
inputs = np.load(given)
for name in ("images", "texts", "weights"):
    card = json.load(open(f"{name}.json"))
    for line in card["how_to_use"]:
        line = line.replace('["a text", "another, longer text"]', 'inputs["texts"].tolist()')
        exec(line.replace("np.zeros((4, 8, 8, 1), np.uint8)", 'inputs["images"]'))
    found[name] = features
np.savez(out, images=found["images"], texts=found["texts"], **weights)
"""


def python(*args: object, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=dict(os.environ),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run on digits, and the features that its own evaluation has of the test images."""
    config = simclr_digits.get_config()
    config.model, config.augment.order = MLP, ()  # fewer programs to compile
    config.train.update(dict(steps=4, batch_size=16, eval_every=0, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    config.evaluation.batch_size = 200
    run = RunDirectory(
        tmp_path_factory.mktemp("runs") / "images", config.to_dict(),
        config_name="configs/contrastive/simclr_digits.py",
    )  # fmt: skip
    state = train(config, run, simclr.task(config))
    evaluator = ImageEvaluator(build_encoder(config), config)
    (train_features, _), (features, labels) = evaluator.features(state.variables)
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    run.close()
    pixels = evaluator.test.arrays()["image"]
    return types.SimpleNamespace(
        path=run.path, config=config, state=state, pixels=pixels, labels=np.asarray(labels),
        features=np.asarray(features), train_features=np.asarray(train_features),
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run on texts as it is before training, and the vectors that its evaluation would have."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.md").write_text("A comet is a body of ice and dust near the sun. " * 8)
    (folder / "two.md").write_text("To bake bread, knead flour, water, salt and yeast. " * 8)
    config = contriever_pydocs_random.get_config()
    config.data.update(dict(name=f"texts:{folder}", train="all"))
    config.tokens.update(dict(vocabulary=300, max_length=24, positions=26))
    config.model.update(dict(width=16, depth=1, heads=2, mlp=32))
    config.queue.size = 16
    path = tmp_path_factory.mktemp("runs") / "texts"
    model, state = untrained_run(path, config)
    vectors = model.features(state.variables)(TEXTS)
    return types.SimpleNamespace(path=path, folder=folder, vectors=vectors)


@pytest.fixture(scope="module")
def encoder(images):
    return rml.load(images.path)


@pytest.fixture(scope="module")
def given(images, tmp_path_factory):
    """What other processes are given."""
    file = tmp_path_factory.mktemp("given") / "given.npz"
    np.savez(file, images=images.pixels, texts=np.array(TEXTS))
    return file


# Round trips.


@pytest.mark.slow
def test_a_fresh_process_has_the_features_of_the_runs_own_evaluation(
    fork, images, texts, given, tmp_path
):
    paths = images.path, texts.path, given, tmp_path / "out.npz"
    process = fork("-c", FRESH, *map(str, paths))
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-3000:]
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(found["images"], images.features)
    np.testing.assert_allclose(found["spread"], images.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["texts"], texts.vectors, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["second"], images.features)
    assert found["places"].tolist() == [1]
    assert found["images"].dtype == np.float32
    assert (found["width"], found["step"]) == (24, 4)


@pytest.mark.slow
def test_exports_run_without_the_repository(images, texts, given, tmp_path, capsys):
    """The lines of each card, in a process that has no `rml`, elsewhere."""
    for run, form, name in (
        (images.path, "stablehlo", "images"), (texts.path, "stablehlo", "texts"),
        (images.path, "safetensors", "weights"),
    ):  # fmt: skip
        assert export.main([str(run), f"--format={form}", f"--out={tmp_path / name}"]) == 0
    assert "4 arrays" in capsys.readouterr().out  # of two layers: the head is not among them
    python("-I", "-c", ALONE, os.path.realpath(ROOT), given, "out.npz", cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["images"], images.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["texts"], texts.vectors, rtol=1e-5, atol=1e-5)

    flat = jax.tree.leaves_with_path(images.state.variables["params"]["encoder"])
    expected = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}
    names = {f"params.encoder.{name}": leaf for name, leaf in expected.items()}
    assert set(found.files) == {"images", "texts", *names}
    for name, leaf in names.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)

    card = json.loads((tmp_path / "images.json").read_text())
    assert card["width"] == 24
    assert card["inputs"]["images"] == "uint8 ['n', 8, 8, 1]"
    assert card["paper"]["arxiv"] == "2002.05709"
    assert card["config"]["train"]["steps"] == card["step"] == 4
    assert card["provenance"]["config_name"] == "configs/contrastive/simclr_digits.py"
    card = json.loads((tmp_path / "texts.json").read_text())
    assert card["inputs"]["tokenizer"] == "texts.tokenizer.json"
    assert card["inputs"]["unit_length"]


# Inputs.


def as_paths(images, tmp_path):
    files = [tmp_path / f"{at}.png" for at in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    return files


@pytest.mark.slow
@pytest.mark.parametrize(
    "give",
    [
        lambda x, _: x,
        lambda x, _: x[..., 0],
        lambda x, _: jnp.asarray(x),
        lambda x, _: x.astype(np.float64) / 255,
        lambda x, _: list(x),
        lambda x, _: [Image.fromarray(image[..., 0]) for image in x],
        lambda x, _: [Image.fromarray(image[..., 0]).convert("RGB") for image in x],
        as_paths,
        lambda x, path: [str(file) for file in as_paths(x, path)],
        lambda x, path: [*as_paths(x[:10], path), *x[10:]],
    ],
)  # fmt: skip
def test_images_are_taken_as_they_come(encoder, images, tmp_path, give):
    found = encoder(give(images.pixels[:50], tmp_path))
    np.testing.assert_allclose(found, images.features[:50], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_images_of_mixed_sizes_are_brought_to_that_of_the_run(encoder, tmp_path):
    """As the run's own data is: by the source of a folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "class").mkdir()
    files = [tmp_path / "class" / f"{at}.png" for at in range(5)]
    for at, file in enumerate(files):
        pixels = rng.integers(0, 256, (8 + 3 * at, 20, 3), np.uint8)
        Image.fromarray(pixels).convert("L").save(file)
    source = load(f"folder:{tmp_path}", "all", image_size=8)
    order = [Path(name).name for name in source.files]
    expected = encoder(source.arrays()["image"])
    found = encoder([tmp_path / "class" / name for name in order])
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "colour").mkdir()
    colour = [tmp_path / "colour" / f"{at}.png" for at in range(3)]
    for file in colour:
        Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(file)
    source = load(f"folder:{tmp_path / 'colour'}", "all")
    assert [*map(Path, source.files)] == [Path(file.name) for file in colour]
    np.testing.assert_array_equal(encoder(source), encoder(colour))
    large = rng.integers(0, 256, (3, 20, 16), np.uint8)
    found = encoder([Image.fromarray(image) for image in large])
    np.testing.assert_array_equal(encoder(large), found)


@pytest.mark.slow
def test_any_number_of_images_is_one_program(images):
    """Batches of 200: a ragged last one is filled up; so is a call of a few images."""
    encoder = rml.load(images.path)
    program = compiled(encoder.embedder.function, encoder.embedder.mesh)
    program.clear_cache()  # which encoders of one shape share
    for count in (200, 201, 300, len(images.pixels)):
        found = encoder(images.pixels[:count])
        np.testing.assert_allclose(found, images.features[:count], rtol=1e-5, atol=1e-5)
    assert program._cache_size() == 1
    for count in (5, 8, 7, 6):
        encoder(images.pixels[:count])
    assert program._cache_size() == 2
    assert encoder(images.pixels[:0]).shape == (0, 24)
    done = []
    encoder(images.pixels, progress=lambda *counts: done.append(counts))
    assert done == [(200, len(images.pixels)), (len(images.pixels),) * 2]


@pytest.mark.slow
def test_the_pure_function_is_differentiable(encoder, images):
    """For those who fine-tune: variables in, features out."""
    x = jnp.asarray(images.pixels[:4])
    value = encoder.function(encoder.variables, x)
    np.testing.assert_allclose(value, images.features[:4], rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda v: encoder.function(v, x).sum())(encoder.variables)
    assert float(jnp.abs(gradient["params"]["encoder"]["dense0"]["kernel"]).max()) > 0


@pytest.mark.slow
def test_products_have_the_precision_of_the_run(encoder, images):
    exact = dataclasses.replace(encoder, config=encoder.config | {"precision": "highest"})
    assert rounded(encoder.function, encoder.variables, images.pixels[:4], gradient=False)
    assert not rounded(exact.function, exact.variables, images.pixels[:4], gradient=False)
    seen = []

    def function(variables, pixels):
        seen.append(jax.config.jax_default_matmul_precision)
        return variables * jnp.ones((len(pixels), 1))

    embedder = ImageEmbedder(function, jnp.ones(()), 4)
    for one in (encoder, exact):
        dataclasses.replace(one, embedder=embedder)(images.pixels[:4])
    assert seen[0] is None
    assert seen[-1] == "highest"


@pytest.mark.slow
def test_what_a_notebook_shows_of_an_encoder_is_short(encoder, images):
    shown = repr(encoder)
    assert len(shown) < 300
    assert all(part in shown for part in ("images", str(images.path), str(encoder.step)))


ZEROS = np.zeros((2, 8, 8, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (ZEROS[0], ["float64[8, 8, 1]", "[n, 8, 8, 1]", "image[None]"]),
        (np.zeros((2, 8, 8, 3), np.uint8), ["uint8[2, 8, 8, 3]"]),
        (np.zeros((2, 64), np.uint8), ["uint8[2, 64]"]),
        (np.zeros((2, 0, 8), np.uint8), ["uint8[2, 0, 8]"]),
        (np.zeros((2, 9, 9)), ["float64[2, 9, 9]"]),
        (ZEROS.astype(int), ["int64", "uint8[n, h, w, 1] of any size", "0..1, [n, 8, 8, 1]"]),
        (ZEROS.astype(bool), ["bool"]),
        (ZEROS + 255.0, ["image 0", "255..255", "floats in 0..1"]),
        (np.stack([ZEROS[0], ZEROS[0] - 0.5]), ["image 1", "-0.5..-0.5"]),
        (ZEROS + np.nan, ["image 0", "nan"]),
        (np.array(["a", "b"]), ["<U1[2]"]),
        ("image.png", ["one image", "'image.png'"]),
        (Image.new("L", (8, 8)), ["one image"]),
        (["nowhere.png"], ["image 0", "'nowhere.png'", "no such file"]),
        ([ZEROS[0], 3], ["image 1", "int 3"]),
        ([ZEROS[0], ZEROS[0].astype(np.uint8)], ["float64 and uint8"]),
        ([np.zeros((8, 8, 3), np.uint8)], ["image 0", "uint8[8, 8, 3]"]),
        ([[1, 2]], ["image 0", "list"]),
        (None, ["None"]),
        (7, ["int 7"]),
        ({"a": 1}, ["dict"]),
    ],
)
def test_what_is_no_image_is_named(encoder, inputs, parts):
    with pytest.raises(UserError) as caught:
        encoder(inputs)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_file_that_is_no_image_is_named(encoder, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"torn\.png cannot be decoded"):
        encoder([tmp_path / "torn.png"])


@pytest.mark.slow
def test_what_is_no_text_is_named(texts):
    encoder = rml.load(texts.path)
    assert (encoder.kind, encoder.width) == ("texts", 16)
    for inputs, part in (
        ("one", "list of texts"),
        ([3], "text 0 is int 3"),
        (None, "list of texts"),
    ):
        with pytest.raises(UserError, match=part):
            encoder(inputs)


# Runs.


def edited(run: Path, path: Path, **changes: object) -> Path:
    """A directory with the config of a run, changed, and nothing else."""
    config = json.loads((run / "config.json").read_text()) | changes
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_what_cannot_be_loaded_is_named(images, tmp_path, monkeypatch):
    (tmp_path / "methods" / "hydra").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"experiment": "hydra.compare"}')
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("no run")
    for path, options, part in (
        ("/nowhere", {}, r"'/nowhere', expected the directory of a run"),
        (tmp_path / "texts", {}, "expected the directory of a run"),
        (tmp_path, {}, "methods/NAME with NAME one of hydra"),
        (edited(images.path, tmp_path / "untrained"), {}, "no checkpoint"),
        (edited(images.path, tmp_path / "none", experiment="kernels.width"), {}, "kernels.width"),
        (edited(images.path, tmp_path / "code", experiment="os.system"), {}, "'os.system'"),
        (edited(images.path, tmp_path / "number", experiment=3), {}, "names no experiment"),
        (images.path, {"step": 3}, "step 3, expected 4 or 2"),
        (images.path, {"pair": (0, 1)}, "no option 'pair', expected none"),
    ):
        with pytest.raises(UserError, match=part) as caught:
            rml.load(path, **options)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "experiments.common.encoders", None)
    with pytest.raises(UserError, match="root of the repository"):
        rml.load(images.path)


@pytest.mark.slow
def test_an_earlier_checkpoint_is_another_encoder(images):
    before = rml.load(images.path, step=2)
    assert before.step == 2
    assert np.abs(before(images.pixels) - images.features).max() > 1e-4


ELSEWHERE = {
    r"retrieval\.": "texts; tests/claims/test_contriever.py",
    r"merging\.bed": "one state of many models; tests/claims/test_fisher_merging.py",
    r"contrastive\.\w*ablation": "one state of many models; tests/claims/test_ablations.py",
}
"""Recipes whose encoder is tested elsewhere, by pattern, and why."""


def encoder_recipes() -> list[str]:
    """The recipes that have an encoder, but for those of `ELSEWHERE`."""
    modules = (ROOT / "experiments").glob("*/*.py")
    found = (f"{m.parent.name}.{m.stem}" for m in modules if {"encoder", "run"} <= defined_names(m))
    return sorted(name for name in found if not any(re.match(own, name) for own in ELSEWHERE))


def test_recipes_whose_encoder_is_tested_elsewhere_are_there():
    assert len(encoder_recipes()) > 11
    recipes = [f"{m.parent.name}.{m.stem}" for m in (ROOT / "experiments").glob("*/*.py")]
    for pattern, why in ELSEWHERE.items():
        assert any(re.match(pattern, name) for name in recipes), pattern
        assert (ROOT / why.rpartition("; ")[2]).is_file(), why


@functools.cache
def image_configs() -> dict[str, list[ConfigDict]]:
    """The configs of images by recipe, those first whose data a package carries."""
    found: dict[str, list[ConfigDict]] = {}
    for config in map(read_config, config_files()):
        if "image_shape" in (config.get("data") or {}):
            found.setdefault(config.experiment, []).append(config)
    return {name: sorted(own, key=lambda c: c.data.name not in OURS) for name, own in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", encoder_recipes())
def test_every_recipe_of_images_gives_the_features_of_its_encoder(name):
    """By shapes alone: as wide as the encoder's own output, without the head.

    Metric learning's head stays: it gives the embeddings.
    """
    config, *_ = image_configs()[name]
    recipe = find_experiment(name)
    state = jax.eval_shape(recipe.task(config).init, jax.random.key(0))
    embedder = recipe.encoder(config, state)
    one = jax.ShapeDtypeStruct((2, *config.data.image_shape), np.uint8)
    found = jax.eval_shape(embedder.function, embedder.variables, one)
    last = config.head if name.startswith("metric.") else config.get("model") or config.student
    assert found.shape == (2, last.features)
    assert embedder.batch_size == (config.get("evaluation") or config.features).batch_size


@pytest.mark.slow
def test_a_pair_of_classes_opens_a_subspace_of_hydras_projections():
    config = hydra_digits.get_config()
    config.model = MLP
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(hydra.task(config).init, jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype)  # noqa: E731
    state = types.SimpleNamespace(variables=jax.tree.map(draw, nn.meta.unbox(shapes.variables)))
    pixels = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    found, swapped = (hydra.encoder(config, state, pair=p)(pixels) for p in ((3, 5), (5, 3)))
    model = hydra.methods.build_model(config, "hydra")
    projections = model.apply(state.variables, jnp.asarray(pixels) / 255, train=False)
    gates = model.apply(state.variables, method="pair_gates")[3, 5]
    np.testing.assert_allclose(found, projections * gates, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, swapped)
    with pytest.raises(UserError, match=r"pair is \(3, 10\), expected two classes from 0 to 9"):
        hydra.encoder(config, state, pair=(3, 10))


# Features of data.


@pytest.mark.slow
def test_features_of_a_folder_without_labels_say_which_file_each_is(
    images, encoder, tmp_path, capsys
):
    (tmp_path / "own").mkdir()
    files = as_paths(images.pixels[:7], tmp_path / "own")
    out = tmp_path / "features.npz"
    command = [str(images.path), f"--data=folder:{tmp_path / 'own'}", f"--out={out}"]
    assert embed.main(command) == 0
    assert "7 images x 24 features" in capsys.readouterr().out
    with np.load(out) as found:
        assert set(found.files) == {"x", "files"}
        at = [[file.name for file in files].index(name) for name in found["files"]]
        assert sorted(at) == list(range(7))
        np.testing.assert_allclose(found["x"], images.features[at], rtol=1e-4, atol=1e-4)
    before = out.read_bytes()
    assert embed.main(command) == 1  # what exists is not overwritten
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.slow
def test_features_of_the_runs_own_data_come_with_labels_and_are_data(images, tmp_path):
    out = tmp_path / "test.npz"
    command = [f"--run={images.path}", "--format=npz", "--split=test", f"--out={out}"]
    assert export.main(command) == 0
    with np.load(out) as found:
        np.testing.assert_array_equal(found["x"], images.features)
        np.testing.assert_array_equal(found["y"], images.labels)
        assert found["class_names"].tolist() == [str(digit) for digit in range(10)]
    again = load(f"npz:{out}", "all").arrays()
    np.testing.assert_array_equal(again["image"], images.features)
    np.testing.assert_array_equal(again["label"], images.labels)


@pytest.mark.slow
def test_vectors_of_texts_say_which_passage_each_is(texts, tmp_path):
    out = tmp_path / "vectors.npz"
    data = f"--data=texts:{texts.folder}"
    assert embed.main([str(texts.path), data, f"--out={out}"]) == 0
    with np.load(out) as found:
        assert {one.partition(":")[0] for one in found["ids"]} == {"one.md", "two.md"}
        assert found["x"].shape == (len(found["ids"]), 16)
        np.testing.assert_allclose(np.linalg.norm(found["x"], axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_images_are_refused_by_an_encoder_of_texts(texts, tmp_path, capsys):
    out = tmp_path / "vectors.npz"
    assert embed.main([str(texts.path), f"--data=folder:{texts.folder}", f"--out={out}"]) == 1
    error = capsys.readouterr().err
    assert f"--data is folder:{texts.folder}, which is images; the encoder takes texts" in error
    assert "expected texts:PATH, beir:PATH or" in error
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "args", "parts"),
    [
        (embed, ["--data=digits"], ["no --out"]),
        (embed, ["--out=OUT"], ["no --data", "folder:"]),
        (embed, ["--data=digitz", "--out=OUT"], ["'digitz'", "'digits'"]),
        (embed, ["--data=digits", "--split=tset", "--out=OUT"], ["tset", "test"]),
        (embed, ["--data=digits", "--out=OUT", "--stpe=1"], ["--stpe"]),
        (embed, ["--data=digits", "--out=OUT", "--step=one"], ["--step", "'one'"]),
        (embed, ["--data=digits", "--out=OUT", "--run=other"], ["got 2 run directories"]),
        (embed, ["--data=folder:/nowhere", "--out=OUT"], ["/nowhere"]),
        (embed, ["--data=texts:/tmp", "--out=OUT"], ["texts:/tmp", "takes images", "folder:PATH"]),
        (embed, ["--data=digits", "--out=/dev/null/x.npz"], ["/dev/null"]),
        (embed, ["--data=digits", "--out=OUT.csv"], ["out.csv", "ends in .npz"]),
        (embed, ["--data=digitz", "--out=/proc/x.npz"], ["--out=/proc/x.npz cannot be written: "]),
        (embed, ["--data=digits", "--out=gs://b/x.npz"], ["--out is 'gs://b/x.npz', a URL"]),
        (export, ["--out=OUT"], ["--format"]),
        (export, ["--format=onnx", "--out=OUT"], ["'onnx'", "stablehlo"]),
        (export, ["--format=npz", "--out=gs://b/x"], ["--out is 'gs://b/x', a URL", "mount"]),
    ],
)
def test_wrong_commands_end_in_one_line_and_write_nothing(
    images, tmp_path, capsys, tool, args, parts
):
    args = [arg.replace("OUT", str(tmp_path / "out")) for arg in args]
    assert tool.main([str(images.path), *args]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--data=digits", "--split=test"])
def test_weights_are_of_no_data(tmp_path, capsys, flag):
    command = [str(tmp_path), "--format=safetensors", f"--out={tmp_path / 'out'}", flag]
    assert export.main(command) == 1
    told = capsys.readouterr().err
    assert f"{flag.partition('=')[0]} is '{flag.partition('=')[2]}', and --format=safet" in told


@pytest.mark.slow
def test_an_existing_card_is_not_overwritten(images, tmp_path, capsys):
    (tmp_path / "out.json").write_text("mine")
    command = [str(images.path), "--format=safetensors", f"--out={tmp_path / 'out'}"]
    assert export.main(command) == 1
    assert "out.json exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    out = tmp_path / "out.npz"
    message = f"^{out} cannot be written: File too large$"
    with full_after(1000), pytest.raises(UserError, match=message):
        embed.write_whole(out, lambda file: np.savez(file, x=np.zeros(999)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("blocked", ["out", "out.json", "out.tokenizer.json"])
def test_an_export_is_whole_or_nothing(texts, tmp_path, capsys, blocked):
    obstacle = tmp_path / f"{blocked}.partial"
    obstacle.mkdir()
    command = [str(texts.path), "--format=safetensors", f"--out={tmp_path / 'out'}"]
    assert export.main(command) == 1
    assert f"{tmp_path / blocked} cannot be written: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [obstacle]
    obstacle.rmdir()
    assert export.main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.json", "out.tokenizer.json"}


def small_decoder(window):
    """A text encoder of a decoder whose tokens see `window` tokens."""
    module = TextEncoder(
        Llama(vocabulary=32, width=16, depth=2, heads=2, mlp=32, positions=16, window=window),
        "last",
    )
    tokens = jnp.ones((1, 8), jnp.int32)
    variables = module.init(jax.random.key(0), tokens, tokens > 0)
    return Encoder("texts", {"data": {}}, "mine", None, TextEmbedder(module, variables, None, 16))


@pytest.mark.slow
def test_a_program_of_a_decoder_with_a_window():
    # In a process of its own, where no annotation asks that a length be a number.
    python("-c", "from tests.system import test_encoders as own; own.check_windows()")


def check_windows():
    """Compares a program of a window with the module, for texts below and above it."""
    encoder, other = small_decoder(4), small_decoder(None)
    program = jax.export.deserialize(bytearray(export.make_program(encoder)))
    for length, same in ((3, True), (4, True), (9, False)):
        tokens = jnp.arange(2 * length, dtype=jnp.int32).reshape(2, length) + 3
        inputs = (tokens, tokens > 0)
        expected = encoder.function(encoder.variables, *inputs)
        np.testing.assert_allclose(program.call(*inputs), expected, rtol=1e-5, atol=1e-5)
        whole = other.function(encoder.variables, *inputs)
        assert np.allclose(whole, expected, rtol=1e-3, atol=1e-3) == same


@pytest.mark.slow
def test_a_function_that_compares_lengths_has_no_program():
    encoder = small_decoder(4)
    short = lambda _, tokens, mask: (tokens * mask)[:, : min(tokens.shape[1], 4)]  # noqa: E731
    with pytest.raises(UserError, match=r"encoder of mine has no program for cpu, .*: "):
        export.make_program(
            types.SimpleNamespace(
                kind="texts", run="mine", variables={}, function=short,
                embedder=encoder.embedder, abstract_inputs=encoder.abstract_inputs,
            )
        )  # fmt: skip
