"""Wrong and odd inputs: each ends before any work, in one line, or is accepted for a reason.

A row gives flags beyond those of a short run on 40 images, and what the error names (parts of its
line) or why the run may start (a reason). Rows are tried as the launcher tries them, in this
process, up to where training would be compiled; `test_launcher.py` launches some.
"""

import importlib
import re

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import ranges, registry
from experiments import run as launcher
from rml.errors import UserError

DIGITS = "configs/contrastive/simclr_digits.py"
BASE = (
    "--config.data.name=npz:{data}/ok.npz", "--config.train.batch_size=8",
    "--config.train.steps=4", "--config.optimizer.warmup_steps=1",
)  # fmt: skip
SGD = "optimizer.name=sgd"

NUMBERS = [
    ("optimizer.learning_rate=-0.1", ("learning_rate", "-0.1", "at least 0")),
    ("optimizer.learning_rate=nan", ("learning_rate", "nan", "at least 0")),
    ("optimizer.learning_rate=inf", ("learning_rate", "inf", "at least 0")),
    ("optimizer.weight_decay=-1", ("weight_decay", "-1", "at least 0")),
    (f"{SGD} optimizer.momentum=2", ("optimizer.momentum", "2", "[0, 1)")),
    ("optimizer.momentum=1", ("optimizer.momentum", "1", "[0, 1)")),
    ("optimizer.b2=2", ("optimizer.b2", "2", "[0, 1)")),
    ("optimizer.ema_decay=2", ("optimizer.ema_decay", "2", "[0, 1)")),
    ("optimizer.clip_norm=-1", ("optimizer.clip_norm", "-1", "at least 0")),
    ("optimizer.final_scale=1.5", ("optimizer.final_scale", "1.5", "[0, 1]")),
    ("optimizer.accumulate=0", ("optimizer.accumulate", "0", "at least 1")),
    ("optimizer.accumulate=5", ("optimizer.accumulate", "5", "train.steps, 4")),
    ("optimizer.warmup_steps=-1", ("optimizer.warmup_steps", "-1", "at least 0")),
    ("optimizer.warmup_steps=900", ("optimizer.warmup_steps", "900", "4 updates")),
    ("train.batch_size=0", ("train.batch_size", "0", "at least 1")),
    ("train.batch_size=-1", ("train.batch_size", "-1", "at least 1")),
    ("train.batch_size=1", ("train.batch_size", "1", "at least 2")),
    ("train.batch_size=5000", ("batch_size", "5000", "32 examples")),
    ("train.steps=0", ("train.steps", "0", "at least 1")),
    ("train.log_every=-1", ("train.log_every", "-1", "at least 0")),
    ("train.eval_every=-1", ("train.eval_every", "-1", "at least 0")),
    ("train.checkpoint_every=-5", ("train.checkpoint_every", "-5", "at least 0")),
    ("precision=high", ("precision", "'high'", "did you mean 'highest'")),
    ("data.data_dir=gs://bucket/sets", ("data.data_dir", "'gs://bucket/sets'", "a URL", "mount")),
    ("data.name=folder:s3://bucket/own", ("data.name", "'folder:s3://bucket/own'", "a URL")),
    ("seed=-1", ("seed", "-1", "[0, 4294967295]")),
    ("seed=4294967296", ("seed", "4294967296", "[0, 4294967295]")),
    ("loss.temperature=0", ("loss.temperature", "0", "above 0")),
    ("loss.temperature=-1", ("loss.temperature", "-1", "above 0")),
    ("augment.random_erase.p=1.5", ("augment.random_erase.p", "1.5", "[0, 1]")),
    ("evaluation.knn_k=0", ("evaluation.knn_k", "0", "at least 1")),
    ("evaluation.knn_temperature=0", ("evaluation.knn_temperature", "0", "above 0")),
    ("evaluation.batch_size=0", ("evaluation.batch_size", "0", "at least 1")),
    ("optimizer.learning_rate=0", "a control: nothing is learned"),
    ("train.log_every=0", "every step is logged"),
    ("train.eval_every=0", "no evaluation before the end"),
    ("seed=4294967295", "the largest seed"),
    ("evaluation.knn_k=100000", "all training images vote"),
    ("optimizer.accumulate=4", "one update"),
]
MODELS = [
    ("model.name=convnett", ("'convnett'", "'convnet'")),
    ("model.activation=swishh", ("activation", "'swishh'", "'silu'")),
    ("model.norm=bach", ("norm", "'bach'", "'batch'")),
    ("model.pooling=avgg", ("pooling", "'avgg'", "flatten")),
    ("model.widths=(-32,64)", ("model.widths", "(-32, 64)", "above 0, each")),
    ("model.widths=(32,)", ("(32,)", "one width, kernel size and stride per stage")),
    ("model.features=0", ("model.features", "0", "at least 1")),
    ("head.features=0", ("head.features", "0", "at least 1")),
    ("head.hidden=-5", ("head.hidden", "-5", "at least 1")),
    ("dtype=float33", ("dtype", "'float33'", "'float32'")),
    ("dtype=int32", ("dtype", "'int32'", "float32")),
    ("optimizer.name=adam", ("optimizer.name", "'adam'", "'adamw'")),
    ("optimizer.schedule=cosine", ("optimizer.schedule", "'cosine'", "'warmup_cosine'")),
    ("augment.order=('random_afine',)", ("augment.order", "'random_afine'", "'random_affine'")),
    ("mesh.data=3", ("data=3", "1 devices")),
    ("mesh.fsdp=-1", ("fsdp=-1", "at most one of -1")),
    ("dtype=bfloat16", "computed in half the width"),
]
DATA = [
    ("data.name=", ("data set name ''",)),
    ("data.name=digitz", ("'digitz'", "'digits'")),
    ("data.name=npy:foo.npy", ("'npy:foo.npy'", "npz:PATH")),
    ("data.name=npz:missing.npz", ("missing.npz",)),
    ("data.name=npz:{data}/broken.npz", ("broken.npz",)),
    ("data.name=npz:{data}/half.npz", ("half.npz",)),
    ("data.name=npz:{data}/objects.npz", ("objects.npz", "pickle")),
    ("data.name=npz:{data}/names.npz", ("names.npz", "pictures", "image")),
    ("data.name=npz:{data}/lengths.npz", ("lengths.npz", "40 examples", "30")),
    ("data.name=npz:{data}/negative.npz", ("negative.npz", "-1", "from 0")),
    ("data.name=npz:{data}/nan.npz data.image_dtype=float32", ("nan.npz", "index 7")),
    ("data.name=npz:{data}/few.npz", ("batch_size=8", "few.npz")),
    ("data.name=npz:{data}/train_only.npz", ("train_only.npz", "test")),
    ("data.name=folder:/nowhere", ("/nowhere",)),
    ("data.name=folder:{data}/empty", ("empty",)),
    ("data.name=folder:{data}/text", ("text/a/0.png", "cannot be decoded")),
    ("data.name=folder:{data}/train_only", ("train_only", "test")),
    ("data.train=trian", ("'trian'", "train")),
    ("data.test=tset", ("'tset'", "test")),
    ("data.train=train[:0%]", ("'train[:0%]'", "no example")),
    ("data.test=test[:0]", ("'test[:0]'", "no example")),
    ("data.train=train[:99999]", ("99999", "32 examples")),
    ("data.image_shape=(8,8,3)", ("[8, 8, 1]", "image_shape")),
    ("data.image_shape=(8,8)", ("data.image_shape", "(8, 8)", "channels")),
    ("data.image_shape=8", ("data.image_shape", "(8,)", "channels")),
    ("data.image_shape=(0,0,1)", ("data.image_shape", "(0, 0, 1)", "at least 1, each")),
    ("data.image_dtype=uint9", ("image_dtype", "'uint9'", "'uint8'")),
    ("data.test=test[:3]", "few test images give a coarse number"),
    ("data.name=folder:{data}/with blank/ünïcode 文字", "a path is a path"),
]  # fmt: skip
CONFIGS = [
    ("", ("is empty",)),
    ("configs/contrastive", ("configs/contrastive", "folder")),
    ("contrastive.simclr", ("'contrastive.simclr'", "configs/contrastive/simclr_")),
    ("configs/contrastive/simclr_minst5k.py", ("simclr_minst5k.py'", "simclr_mnist5k.py'?")),
    ("README.md", ("README.md", "SyntaxError")),
    ("def get_config(:", ("FILE", "SyntaxError")),
    ("x = 1", ("FILE", "no get_config()")),
    ("def get_config(): raise RuntimeError('boom')", ("FILE", "RuntimeError: boom")),
    ("import torchh", ("FILE", "No module named 'torchh'")),
    ("def get_config(): return {'experiment': 'contrastive.simclr'}", ("dict", "ConfigDict")),
    ("def get_config(): pass", ("NoneType", "ConfigDict")),
    ("c.experiment = 'contrastive.simclrr'", ("'contrastive.simclrr'", "'contrastive.simclr'")),
    ("del c.experiment", ("FILE", "'experiment'", "contrastive.simclr")),
    ("del c.loss", ("'loss'", "contrastive.simclr")),
    ("del c.loss.temperature", ("'loss.temperature'", "contrastive.simclr")),
    ("del c.optimizer.b2", ("'b2'",)),
    ("del c.augment.order", ("'augment.order'",)),
    ("c.loss.temprature = 0.1", ("config.loss", "'temprature'", "'temperature'?")),
    ("c.foo = 3", ("'foo'", "expected one of: augment, ")),
    ("c.train.epochs = 2", ("config.train", "'epochs'", "steps")),
    ("c.optimizer.lr = 0.1", ("config.optimizer", "'lr'")),
    ("c.model.depht = 3", ("'depht'",)),
    ("c.head.layrs = 3", ("'layrs'", "'layers'")),
    ("c.augment.random_affine.rotate = 3", ("random_affine", "'rotate'")),
    ("c.foo = np.ones(3)", ("'foo'", "numpy.ndarray")),
    ("c.seed = np.int64(3)", ("'seed'", "numpy.int64")),
    ("with c.ignore_type(): c.train.log_every = 1e3", ("log_every", "1000.0", "a whole number")),
    ("with c.ignore_type(): c.train.log_every = 'ten'", ("log_every", "'ten'", "a whole number")),
    ("c.loss.temperature = '0.1'", ("FILE", "TypeError", "'temperature'")),
    ("with c.ignore_type(): c.evaluation = 'knn'", ("'evaluation.batch_size'",)),
    ("c.head.layers = 3", "an option of the head that no config sets"),
    ("c.train.keep_checkpoints = 3", "an option of the training that no config sets"),
]  # fmt: skip
OVERRIDES = [
    ("--config.trian.steps=3", ("'trian.steps'", "'train.steps'?")),
    ("--config.train.stpes=3", ("'train.stpes'", "'train.steps'?")),
    ("--config.train.stpes 4", ("'train.stpes'", "'train.steps'?")),
    ("--config.train.steps=3.5", ("--config.train.steps=3.5", "int")),
    ("--config.train.steps=many", ("--config.train.steps=many", "int")),
    ("--config.train=5", ("--config.train",)),
    (
        "--config=configs/fewshot/compare_icons.py --config.episodes.kinds.5way_1shot.ways=3",
        ("'episodes.kinds.5way_1shot.ways'", "no name of Python", "a config file of your own"),
    ),
    ("--config.train.steps 4", "a blank for the equals sign"),
]
RECIPES = [
    ("contrastive/moco_v2_mnist5k", "batch_norm.groups=7", ("batch_norm.groups", "7", "divide")),
    ("contrastive/supcon_mnist5k", "train.batch_size=1", ("train.batch_size", "1", "at least 2")),
    ("contrastive/supcon_mnist5k", "loss.form=off", ("form", "'off'")),
    ("hydra/hydra_digits", "train.batch_size=1", ("train.batch_size", "1", "at least 2")),
    ("hydra/hydra_digits", "data.classes=4 transfer.name=npz:{data}/ok.npz transfer.test=tset",
     ("'tset'", "test")),
    ("kernels/classification_digits", "data.test=tset", ("'tset'", "test")),
    ("kernels/classification_digits", "evaluation.batch_size=0", ("evaluation.batch_size", "0")),
    ("kernels/classification_digits", "model.classes=4 model.inducing=33",
     ("model.inducing is 33", "have 32 of them")),
    ("kernels/classification_conv_digits", "model.patch=4", ("model.patch is 4", "odd", "8 x 8")),
    ("kernels/convolution_digits", "data.sizes=(50,1200)",
     ("has 16 images", "at least 1500", "data.sizes")),
    ("retrieval/contriever_pydocs_random", "loss.negatives=batch train.batch_size=1",
     ("train.batch_size", "1", "at least 2")),
    ("retrieval/contriever_pydocs_random", "evaluation.test_queries=0", ("test_queries", "0")),
]  # fmt: skip

FILE = """
import numpy as np
from configs.contrastive import simclr_digits
def get_config():
    c = simclr_digits.get_config()
    {line}
    return c
"""


class Started(Exception):
    """The run has come to where training is compiled."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of good and damaged data."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
    label = np.arange(40) % 4
    broken = image.astype(np.float32) / 255
    broken[7, 3, 3] = np.nan
    for name, arrays in {
        "ok": dict(image=image, label=label),
        "objects": dict(image=image, label=np.array([{}] * 40, dtype=object)),
        "names": dict(pictures=image, label=label),
        "lengths": dict(image=image, label=label[:30]),
        "negative": dict(image=image, label=label - 1),
        "nan": dict(image=broken, label=label),
        "few": dict(image=image[:6], label=label[:6]),
        "train_only": dict(image_train=image, label_train=label),
    }.items():
        np.savez(root / f"{name}.npz", **arrays)
    (root / "broken.npz").write_bytes(b"not a zip file")
    whole = (root / "ok.npz").read_bytes()
    (root / "half.npz").write_bytes(whole[: len(whole) // 2])
    (root / "empty").mkdir()
    for folder in ("text", "train_only/train", "with blank/ünïcode 文字"):
        for name in "ab":
            (root / folder / name).mkdir(parents=True)
            for i in range(10):
                Image.fromarray(image[i, ..., 0]).save(root / folder / name / f"{i}.png")
    (root / "text/a/0.png").write_text("not an image")
    return root


@pytest.fixture
def attempt(tmp_path, data, monkeypatch):
    """Starts a run; returns the line it ends in, None where training would begin."""
    directory = tmp_path / "run"

    def compile_task(task, *_, **__):
        jax.eval_shape(task.init, jax.random.key(0))
        raise Started

    def run(config, *flags):
        try:
            config = registry.read_config(config, [flag.format(data=data) for flag in flags])
            launcher.launch(config, directory, "config.py")
        except Started:
            return None
        except (ValueError, OSError) as error:
            line = str(error)
        except (AttributeError, KeyError) as error:
            line = launcher.lacking(error)
        assert line
        assert "\n" not in line
        assert not directory.exists()  # it would be in the way of the corrected command
        return line

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(importlib.import_module("rml.training.fit"), "CompiledTask", compile_task)
    monkeypatch.setattr(launcher, "quiet_libraries", lambda: None)
    return run


def check(line, expected):
    """Holds a line against a row: the parts that it names, or a reason not to complain."""
    if isinstance(expected, str):
        assert line is None, f"accepted because {expected}"
    else:
        assert line is not None, f"it started, expected an error that names {expected}"
        assert all(part in line for part in expected), line


@pytest.mark.slow
@pytest.mark.parametrize(("values", "expected"), [*NUMBERS, *MODELS, *DATA])
def test_values(attempt, values, expected):
    # A blank before a key separates values; one inside a path stays.
    given = [f"--config.{value}" for value in re.split(r" (?=[a-z_.]+=)", values)]
    check(attempt(DIGITS, *BASE, *given), expected)


def test_ranges_hold_their_ends_where_they_say():
    for inside, outside, within in (
        ((0.0, 0.999), (1.0, -0.1, np.nan), ranges.DECAY),
        ((0.0, 1.0), (1.1, "0.5"), ranges.SHARE),
        ((1e-9, 5), (0.0,), ranges.ABOVE_0),
        ((1, 7), (0, 1.0), ranges.SIZE),
    ):
        assert all(value in within for value in inside)
        assert not any(value in within for value in outside)
    given = ["--config.train.steps=4", "--config.optimizer.accumulate=5"]
    with pytest.raises(UserError, match=r"accumulate is 5, more than train\.steps, 4"):
        ranges.check_config(registry.read_config(DIGITS, given))
    given = ["--config.train.steps=9", "--config.optimizer.warmup_steps=4"]
    ranges.check_config(registry.read_config(DIGITS, [*given, "--config.optimizer.accumulate=2"]))
    with pytest.raises(UserError, match=r"warmup_steps is 4, more than the 3 updates of train"):
        ranges.check_config(
            registry.read_config(DIGITS, [*given, "--config.optimizer.accumulate=3"])
        )


@pytest.mark.slow
@pytest.mark.parametrize(("config", "values", "expected"), RECIPES)
def test_values_of_recipes(attempt, config, values, expected):
    given = [f"--config.{value}" for value in values.split(" ")]
    data = () if "retrieval" in config else ("--config.data.name=npz:{data}/ok.npz",)
    check(attempt(f"configs/{config}.py", *data, *given), expected)


@pytest.mark.parametrize(("flag", "expected"), OVERRIDES)
def test_overrides(attempt, flag, expected):
    check(attempt(DIGITS, *BASE, *flag.split(" ")), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "expected"), CONFIGS)
def test_config_files(attempt, tmp_path, config, expected):
    if code := re.match(r"c\.|del c|with |def |import |x = ", config):
        file = tmp_path / "own config.py"
        file.write_text(FILE.format(line=config) if code[0] in ("c.", "del c", "with ") else config)
        config, base = str(file), BASE if code[0] in ("c.", "del c", "with ") else ()
    else:
        base = ()
    if not isinstance(expected, str):
        expected = tuple(config if part == "FILE" else part for part in expected)
    check(attempt(config, *base), expected)
