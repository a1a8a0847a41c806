"""A tiny bed of experts on texts; `make claims` measures one that learns."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments.merging import bed, compare, compare_ways, networks, tasks
from experiments.merging.finetuning import features
from experiments.merging.judging import Part, judged
from rml.data import tokens
from rml.data.text import LabelledTexts
from rml.errors import UserError
from rml.models import Bert
from rml.models.pretrained import Pretrained
from rml.models.text_encoder import pool
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import small_run
from tests.claims.test_compare_merging import RECIPE
from tests.system.two_steps import override, read

WORDS = ("sun", "rain", "snow", "wind", "dog", "cat", "cow", "owl", "red", "blue", "green", "pink")
SMALL = {
    "model.name": "tiny", "tokens.length": 6, "head.classes": 3, "train.steps": 4,
    "train.batch_size": 4, "train.checkpoint_every": 4, "train.log_every": 2,
    "optimizer.warmup_steps": 1, "optimizer.learning_rate": 0.01, "evaluation.batch_size": 16,
}  # fmt: skip


def drawn(seed, classes, count):
    """Texts of words that are more frequent in one class than in the others."""
    rng = np.random.default_rng(seed)
    label = np.arange(count * classes) % classes
    own = 4 * label[:, None] + rng.integers(0, 4, (len(label), 3))
    words = np.where(rng.random(own.shape) < 0.7, own, rng.integers(0, len(WORDS), own.shape))
    return [" ".join(WORDS[w % len(WORDS)] for w in row) for row in words], label


@pytest.fixture
def texts(monkeypatch):
    """A tiny BERT in the place of pretrained ones, and two tasks that it reads."""
    tokenizer = tokens.train_tokenizer([" ".join(WORDS)] * 20, vocabulary=300)
    module = Bert(vocabulary=300, width=8, depth=1, heads=2, mlp=8, positions=8)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
    loaded = Pretrained(module, variables, tokenizer, {"hidden_size": 8}, "mean", 8, False)
    for where in (bed, compare_ways, networks, tasks):
        monkeypatch.setattr(where, "of_texts", lambda name: loaded)

    def load_text(name, split, *, text_key, label_key, data_dir):
        del data_dir
        assert (text_key, label_key) == ("text", "label")
        counts = {"train": 9, "validation": 6, "test": 6}
        found, label = drawn(len(name) + len(split), 4, counts[split.partition("[")[0]])
        # The last class has no text of validation, the first most of all.
        kept = label < 3 if split.startswith("validation") else label < 4
        more = [found[i] for i in np.flatnonzero(label == 0)]
        found = [text for text, own in zip(found, kept, strict=True) if own] + more
        label = np.concatenate([label[kept], np.zeros(len(more), int)]).astype(np.int32)
        return LabelledTexts(found, label, ("most", "few", "rare", "absent"))

    monkeypatch.setattr(tasks.data, "load_text", load_text)
    tasks._read_texts.cache_clear()
    yield loaded
    tasks._read_texts.cache_clear()


def config_of(path, **changes):
    """A config with two tasks of texts, changed where given."""
    config = override(read(path), {})
    config.tasks = dict(questions=config.tasks.questions, spam=config.tasks.spam)
    return override(config, SMALL | changes)


def test_a_task_of_texts_has_its_most_frequent_classes_as_tokens(texts):
    config = config_of("configs/merging/bed_texts.py")
    found = tasks.open_tasks(config)
    assert list(found) == ["questions", "spam"]
    for task in found.values():
        assert task.train.class_names == ("most", "few", "rare")  # "absent" lacks validation
        arrays = task.train.arrays()
        assert arrays["image"].shape == (9 * 4, 6)
        assert arrays["image"].dtype == np.int32
        np.testing.assert_array_equal(np.bincount(arrays["label"]), [18, 9, 9])
    config.tasks.spam.classes = 2
    assert tasks.open_tasks(config)["spam"].test.class_names == ("most", "few")
    config.head.classes = 2
    with pytest.raises(UserError, match="task questions has 3 classes, expected at most"):
        tasks.open_tasks(config)


@pytest.mark.slow
def test_features_are_means_over_text_without_padding(texts):
    config = config_of("configs/merging/bed_texts.py")
    base = networks.pretrained_texts(config)
    given = jnp.array([[2, 30, 31, 3, 0, 0], [2, 40, 3, 0, 0, 0]])
    found = features(networks.network(config), base, given)
    hidden = texts.module.apply(texts.variables, given, given != 0)
    np.testing.assert_allclose(found, pool(hidden, given != 0, "mean"), rtol=1e-5, atol=1e-6)
    assert networks.spec(config, 3).shape == (3, 6)
    images = networks.spec(read("configs/merging/bed.py"), 3)
    assert (images.shape, images.dtype) == ((3, 28, 28, 1), jnp.uint8)
    assert networks.mask_of(jnp.zeros(images.shape, images.dtype)) is None


def test_noise_is_of_random_tokens_in_the_places_of_real_ones(texts):
    config = config_of("configs/merging/compare_texts.py")
    real = np.array([[2, 30, 31, 3, 0, 0]] * 20, np.int32)
    part = Part(tasks.Images(jnp.asarray(real), np.arange(20), np.zeros(20, int)), None, None)
    found = np.asarray(compare_ways.noise(config, part).image)
    np.testing.assert_array_equal(found != 0, real != 0)
    assert len(np.unique(found)) > 20
    assert found.max() < 300


@pytest.mark.slow
def test_a_small_bed_of_texts_is_trained_read_and_merged(texts, monkeypatch, tmp_path):
    config = config_of("configs/merging/bed_texts.py")
    run = RunDirectory(tmp_path / "bed", config.to_dict())
    metrics = bed.run(config, run)
    run.write_summary(metrics=metrics, claims=[], seconds=1.0)
    run.close()
    assert np.isfinite(list(metrics.values())).all()
    assert (tmp_path / "bed" / "figures" / "experts.png").exists()
    changes = {**RECIPE, "bed.run": str(tmp_path / "bed")}
    own = config_of("configs/merging/compare_texts.py", **changes)
    opened = bed.open_bed(own, None)
    leaves = jax.tree.leaves(bed.subtract(opened.experts, opened.base))
    assert max(np.abs(leaf).max() for leaf in leaves) > 1e-3
    # An expert reads strings as the bed reads tokens.
    strings = ["sun rain", "dog cow owl"]
    reader = rml.load(tmp_path / "bed", expert="spam")
    rows = tokens.pad(tokens.encode(texts.tokenizer, strings, max_length=6), width=6)[0]
    expert = bed.take(opened.experts, 1)
    wanted = features(opened.module, expert, jnp.asarray(rows))
    np.testing.assert_allclose(reader(strings), wanted, rtol=1e-4, atol=1e-5)
    found = small_run(compare, opened._replace(config=own), monkeypatch, tmp_path / "run")
    assert found["accuracy_experts"] == pytest.approx(1.0, rel=1e-5)
    part = judged(opened, "validation")
    assert part.images.image.dtype == jnp.int32
