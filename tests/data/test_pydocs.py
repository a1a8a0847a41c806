import functools
import importlib.metadata
import re
import sys
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rml
from rml.data import DataError, builders, duplicates, load, load_text, pydocs
from rml.data.duplicates import near_duplicates

normalized = functools.cache(duplicates.normalized)  # of texts that several tests compare

SOURCE = '''
import nowhere_to_be_found

@decorate
def outer(x):
    """Adds one to what it is given and says so.

    Longer words about the sum that stand below the first paragraph.
    """
    def inner(y):
        """Multiplies by two, which is a thing that inner functions do."""
        return 2 * y  # kept
    return inner(x) + 1


class Thing:
    """A thing of which there are many more than ten words to say here."""

    if True:
        def method(self): """Not on lines of its own and so it is left alone, whatever it says."""

    def empty(self):
        """Says a great deal about what it will do and then does nothing."""
        raise NotImplementedError("later")

    def short(self):
        """Too short to say."""
        return 1
'''


@pytest.fixture(scope="module")
def tfds_dir(tfds_data_dir, pydocs):
    """Where it is prepared, by a process that does not check the types of every word."""
    return tfds_data_dir


@pytest.fixture(scope="module")
def pairs(tfds_dir):
    """All pairs by split, as prepared."""
    import tensorflow_datasets as tfds

    from rml.data.tfds_source import read_texts

    builder = tfds.builder_from_directory(builders.prepare("pydocs", tfds_dir))
    found = {}
    for split in builder.info.splits:
        read, _ = read_texts("pydocs", split, data_dir=tfds_dir, keys=pydocs.Pair._fields)
        found[split] = [pydocs.Pair(*row) for row in zip(*read.values(), strict=True)]
    return found


def test_packages_are_the_core_dependencies():
    project = tomllib.loads((Path(rml.__file__).parents[1] / "pyproject.toml").read_text())
    core = {re.match(r"[\w-]+", one)[0] for one in project["project"]["dependencies"]}
    read = core - {"filelock"}  # JAX's cache asks for it, none of our code does
    assert set(pydocs.PACKAGES) == read
    assert set(pydocs.versions()) == read | {"python"}


@pytest.mark.slow
def test_sizes_and_packages(pairs):
    sizes = {split: len(found) for split, found in pairs.items()}
    total = sum(sizes.values())
    assert 15_000 < total < 30_000
    assert 0.7 < sizes["train"] / total < 0.9
    assert min(sizes["validation"], sizes["test"]) > 0.05 * total
    counts = Counter(pair.package for found in pairs.values() for pair in found)
    assert set(counts) == {
        pydocs.STANDARD_LIBRARY, *(path.split("/")[0] for path in pydocs.PACKAGES.values())
    }  # fmt: skip
    assert counts["python"] > 2_000


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # which takes longer than the work, for every word
def test_modules_and_texts_of_splits_are_disjoint(pairs):
    for split, found in pairs.items():
        assert {pydocs.split_of(pair.module) for pair in found} == {split}
    for fields in (("module",), ("docstring",), ("code",), ("title", "description")):
        seen = [
            {
                normalized(getattr(pair, field))
                for pair in found
                if pair.description or fields[-1] != "description"
                for field in fields
            }
            for found in pairs.values()
        ]
        assert all(seen)
        assert len(set().union(*seen)) == sum(map(len, seen))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_no_pair_comes_twice(pairs):
    every = [pair for found in pairs.values() for pair in found]
    assert len({pair.name for pair in every}) == len(every)
    for field in ("docstring", "code"):
        assert len({normalized(getattr(pair, field)) for pair in every}) == len(every)
    docstrings = [pair.docstring for pair in every[-4_000:]]
    assert near_duplicates([*docstrings, docstrings[7] + " And more."]).tolist() == (
        [False] * len(docstrings) + [True]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_pairs_are_as_promised(pairs):
    for pair in pairs["test"]:
        assert len(normalized(pair.docstring).split()) >= pydocs.MIN_WORDS
        assert normalized(pair.docstring).startswith(normalized(pair.title))
        assert "\n" not in pair.title
        assert pair.name.startswith(pair.module + ".")
        assert len(pair.code) <= pydocs.MAX_CHARACTERS
        assert re.match(r"(@|def |class |async def )", pair.code)
        assert pair.docstring not in pair.code


@pytest.mark.slow
def test_the_standard_library_reads_as_python_itself_does(pairs):
    import inspect
    import textwrap

    found = {pair.name: pair for split in pairs.values() for pair in split}
    pair = found["textwrap.dedent"]
    assert pair.docstring == inspect.getdoc(textwrap.dedent)
    body = inspect.getsource(textwrap.dedent)
    without = body[: body.index('    """')] + body[body.rindex('"""') + 4 :]
    assert normalized(pair.code) == normalized(without)
    assert (pair.module, pair.package) == ("textwrap", "python")


def test_definitions_of_a_file(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(SOURCE)
    outer, inner, thing = pydocs._pairs(file, "a.one", "a")
    assert [pair.name for pair in (outer, inner, thing)] == [
        "a.one.outer", "a.one.outer.inner", "a.one.Thing"
    ]  # fmt: skip
    assert outer.title == "Adds one to what it is given and says so."
    assert outer.description.startswith("Longer words")
    assert outer.code == textwrap.dedent(
        """\
        @decorate
        def outer(x):
            def inner(y):
                return 2 * y  # kept
            return inner(x) + 1"""
    )
    assert inner.code == "def inner(y):\n    return 2 * y  # kept"
    assert "Says a great deal" not in thing.code
    assert thing.code.endswith("return 1")


@pytest.mark.parametrize("content", [b"def (", b"\xff\xfe\x00", b"# coding: nonsense\n", b"\0"])
def test_files_that_are_no_python_are_passed_over(tmp_path, content):
    file = tmp_path / "broken.py"
    file.write_bytes(content)
    assert list(pydocs._pairs(file, "broken", "python")) == []


def test_reading_imports_nothing(tmp_path):
    """No module of the packages is loaded because its file is read."""
    loaded = set(sys.modules)
    for package, root, prefix in pydocs._roots():
        for module, file in pydocs._files(root, prefix)[:3]:
            list(pydocs._pairs(file, module, package))
    assert set(sys.modules) == loaded


@pytest.mark.slow
def test_another_version_is_another_data_set(tfds_dir, monkeypatch):
    here = pydocs.fingerprint()
    assert here == pydocs.fingerprint()
    assert builders.prepare("pydocs", tfds_dir).parent.name == here
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9" if name == "numpy" else version(name)
    )
    assert pydocs.fingerprint() != here


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_prepared_versions_are_opened_by_name(tfds_dir):
    builders.prepare("pydocs", tfds_dir)
    named = f"pydocs/{pydocs.fingerprint()}"
    assert load_text(named, "test").texts == load_text("pydocs", "test").texts
    with pytest.raises(DataError, match="'pydocs/py0' is not prepared"):
        load_text("pydocs/py0", "test")
    with pytest.raises(DataError, match="holds texts, not images"):
        load("pydocs", "train")


@pytest.mark.slow
def test_tfds_itself_reads_what_was_prepared(tfds_dir, pairs):
    import tensorflow_datasets as tfds

    theirs = tfds.builder("pydocs", data_dir=str(tfds_dir)).as_data_source("test")
    assert len(theirs) == len(pairs["test"])
    assert theirs[5]["code"].decode() == pairs["test"][5].code


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_modules_are_classes_for_episodes(tfds_dir):
    per_split = [
        load_text("pydocs", split, label_key="module", min_examples=16)
        for split in ("train", "test")
    ]
    for texts, labels, names in per_split:
        assert len(texts) == len(labels)
        assert np.bincount(labels).min() >= 16
        assert len(names) == labels.max() + 1 >= 10
    assert set(per_split[0].class_names).isdisjoint(per_split[1].class_names)
    with pytest.raises(DataError, match="no class of 'module' has 100000 texts"):
        load_text("pydocs", "test", label_key="module", min_examples=100_000)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_packages_are_the_same_classes_in_every_split(tfds_dir):
    train, test = load_text("pydocs", "train"), load_text("pydocs", "test[:50%]")
    assert train.class_names == test.class_names
    assert len(train.class_names) == len(pydocs.PACKAGES) + 1


def brute_force(texts, similarity):
    sets = []
    for text in texts:
        words = normalized(text).split()
        sets.append(
            {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} if words else set()
        )
    dropped = []
    for index, one in enumerate(sets):
        dropped.append(any(
            one and len(one & other) >= similarity * len(one | other)
            for other, gone in zip(sets[:index], dropped, strict=True) if not gone
        ))  # fmt: skip
    return dropped


@given(
    st.lists(st.lists(st.sampled_from("ab"), max_size=9).map(" ".join), max_size=12),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_all_comparisons(texts, similarity):
    assert near_duplicates(texts, similarity=similarity).tolist() == brute_force(texts, similarity)


def test_near_duplicates_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"similarity must be in \(0, 1\], got 0.0"):
        near_duplicates(["a"], similarity=0.0)
    with pytest.raises(ValueError, match="words must be at least 1"):
        near_duplicates(["a"], words=0)
