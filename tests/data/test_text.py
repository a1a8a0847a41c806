import contextlib
import gzip
import io
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rml.data import DataError, load_documents, load_retrieval, load_text
from rml.data.collections import PAGE, Pages
from rml.data.duplicates import normalized
from rml.data.passages import cut, read_passages
from rml.errors import UserError
from rml.evaluation import make_qrels, retrieval_scores

CORPUS = [
    {"_id": "d1", "title": "Sums", "text": "Adding numbers."},
    {"_id": "d2", "title": "", "text": "Products of numbers."},
    {"_id": "d3", "text": "Ünïcode without title", "metadata": {"url": "x"}},
]
QUERIES = [
    {"_id": "q1", "text": "add"},
    {"_id": "q2", "text": "multiply"},
    {"_id": "q3", "text": "?"},
]
QRELS = "query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n"


def lines(entries):
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


@pytest.fixture
def collection(tmp_path):
    """A folder in BEIR's format."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(lines(CORPUS), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text(lines(QUERIES))
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def check_collection(data):
    assert data.documents == [
        "Sums Adding numbers.",
        "Products of numbers.",
        "Ünïcode without title",
    ]
    assert data.document_ids == ["d1", "d2", "d3"]
    assert (data.queries, data.query_ids) == (["add", "multiply"], ["q1", "q2"])
    assert [array.tolist() for array in data.qrels] == [[0, 1, 1], [0, 0, 1], [1, 0, 2]]
    assert {array.dtype for array in data.qrels} == {np.dtype(np.int32)}
    assert data.labels is None


def test_beir(collection):
    check_collection(load_retrieval(f"beir:{collection}", "test"))
    assert len(load_documents(f"beir:{collection}", "whatever")) == 3


def test_beir_compressed_with_windows_line_ends_and_no_header(collection):
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        file = collection / name
        text = file.read_text(encoding="utf-8").replace("\n", "\r\n")
        file.unlink()
        if name.endswith("tsv"):
            text = text.partition("\r\n")[2] + "\r\n"
        (collection / f"{name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    check_collection(load_retrieval(f"beir:{collection}", "test"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", None, r"there is no file .*corpus\.jsonl"),
        ("queries.jsonl", None, r"there is no file .*queries\.jsonl"),
        ("qrels/test.tsv", None, r"there is no file .*test\.tsv; there are the splits \[\]"),
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        ("corpus.jsonl", lines(CORPUS) + "{", r"corpus\.jsonl, line 4 is not JSON"),
        ("corpus.jsonl", lines(CORPUS) + "[1]", r"corpus\.jsonl, line 4 is \[1\], expected an obj"),
        ("corpus.jsonl", '{"n": ' + "1" * 5000 + "}", r"line 1 is not JSON: Exceeds the limit"),
        ("corpus.jsonl", "[" * 100_000, r"line 1 is not JSON: maximum recursion depth"),
        ("corpus.jsonl", '{"text": "a"}', r"line 1: '_id' is None, expected a string"),
        ("corpus.jsonl", '{"_id": 5, "text": "a"}', r"line 1: '_id' is 5, expected a string"),
        ("corpus.jsonl", '{"_id": "d1"}', r"line 1: 'text' is None"),
        ("corpus.jsonl", '{"_id": "a", "text": "", "title": 3}', r"'title' is 3"),
        ("corpus.jsonl", lines([CORPUS[0]] * 2), r"line 2: the id 'd1' is there already"),
        ("corpus.jsonl", b"\n\xff", r"corpus\.jsonl, line 2 is not UTF-8"),
        ("queries.jsonl", "\n\nno", r"queries\.jsonl, line 3 is not JSON"),
        ("qrels/test.tsv", "", r"test\.tsv holds no judgements"),
        ("qrels/test.tsv", QRELS + "q1 d1 1", r"line 5 has 1 columns, expected 3"),
        ("qrels/test.tsv", QRELS + "q1\td2\tyes", r"line 5: the score is 'yes', expected an int"),
        ("qrels/test.tsv", "q1\td1\t1.0", r"line 1: the score is '1\.0', expected an integer"),
        ("qrels/test.tsv", "q1\td9\tyes\nq1\td1\t1", r"line 1: the score is 'yes', expected"),
        ("qrels/test.tsv", "q9\td1\tyes\nq1\td1\t1", r"line 1: the score is 'yes', expected"),
        ("qrels/test.tsv", QRELS + "q1\td2\t2147483648", r"line 5: the score is 21.*, expected"),
        ("qrels/test.tsv", QRELS + "q1\td2\t-9147483648", r"line 5: the score is -9.*, expected"),
        ("qrels/test.tsv", QRELS + "q9\td2\t1", r"line 5: there is no query 'q9' in queries"),
        ("qrels/test.tsv", QRELS + "q1\td9\t1", r"line 5: there is no document 'd9' in corpus"),
        ("qrels/test.tsv", QRELS + "q1\td1\t1", r"line 5: 'd1' is judged twice for the query 'q1'"),
    ],
)
def test_broken_collections_say_where(collection, file, content, message):
    if content is None:
        (collection / file).unlink()
    else:
        data = content if isinstance(content, bytes) else content.encode()
        (collection / file).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_retrieval(f"beir:{collection}", "test")


def test_a_plain_file_counts_before_a_compressed_one(collection):
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (collection / f"{name}.gz").write_bytes(gzip.compress(b"of another version"))
    check_collection(load_retrieval(f"beir:{collection}", "test"))


@pytest.mark.slow
def test_grades_below_0_are_as_little_relevant_as_0(collection):
    found = []
    for grade in (0, -2):
        (collection / "qrels" / "test.tsv").write_text(QRELS.replace("d1\t0", f"d1\t{grade}"))
        data = load_retrieval(f"beir:{collection}", "test")
        assert data.qrels.grade.tolist() == [1, grade, 2]
        assert [array.tolist() for array in data.answers] == [[0, 1], [0, 1], [1, 2]]
        qrels = make_qrels(*data.qrels, num_queries=2)
        scores = retrieval_scores(jnp.array([[2, 0, 1]] * 2), qrels, cutoffs=(2, 3))
        found.append({name: values.tolist() for name, values in scores.items()})
    assert found[0] == found[1]
    assert found[1]["ndcg@3"] == pytest.approx([np.log(2) / np.log(3), 1 / 2])


def test_a_damaged_archive_and_a_split_that_is_not_there(collection):
    with pytest.raises(DataError, match=r"dev\.tsv; there are the splits \['test'\]"):
        load_retrieval(f"beir:{collection}", "dev")
    (collection / "corpus.jsonl").unlink()
    (collection / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d1"}' * 99)[:20])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz cannot be read"):
        load_retrieval(f"beir:{collection}", "test")


@pytest.fixture
def folder(tmp_path):
    """A folder of notes."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    (tmp_path / "b" / "note.md").write_text("\n\nFirst line\nsecond\n\n\nThird.\n")
    (tmp_path / "a.txt").write_text("\n\n".join(f"word{i} " * 60 for i in range(5)))
    (tmp_path / "empty.rst").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_texts_of_a_folder(folder):
    data = load_retrieval(f"texts:{folder}", "all")
    assert data.document_ids == ["a.txt:1", "a.txt:5", "a.txt:9", "b/note.md:3"]
    assert data.documents[-1] == "First line\nsecond\n\n\nThird."
    assert (data.queries, data.query_ids, len(data.qrels.query)) == ([], [], 0)
    assert load_documents(f"texts:{folder}", "all") == data.documents
    one = load_retrieval(f"texts:{folder / 'b' / 'note.md'}", "all")
    assert one.document_ids == ["note.md:3"]


def test_every_part_of_a_long_line_is_a_document(tmp_path):
    words = [f"w{i}" for i in range(500)]
    text = " ".join(words)
    (tmp_path / "a.txt").write_text(f"{text}\n{text}")
    data = load_retrieval(f"texts:{tmp_path}", "all")
    assert " ".join(data.documents).split() == words * 2
    parts = ["", "#2", "#3", "#4"]
    # The rest of a line of 3 x 160 words stands alone: the next line's first part fills a passage.
    assert data.document_ids == [f"a.txt:{line}{part}" for line in (1, 2) for part in parts]
    assert load_documents(f"texts:{tmp_path}", "all") == data.documents


def test_folders_that_hold_no_text(tmp_path, folder):
    with pytest.raises(DataError, match="there is no folder"):
        load_retrieval(f"texts:{tmp_path}/absent", "all")
    with pytest.raises(DataError, match="has one split, 'all', got 'train'"):
        load_retrieval(f"texts:{folder}", "train")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text"):
        read_passages(folder)
    (folder / "latin.txt").unlink()
    (folder / "broken.md").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"broken\.md cannot be read: No such file or directory"):
        read_passages(folder)
    (folder / "sub").mkdir()
    with pytest.raises(DataError, match=r"sub holds no text, expected files such as \.txt"):
        read_passages(folder / "sub")


def test_passages_of_folders_that_links_lead_to(tmp_path):
    for file in ("far/a.md", "far/.hidden/b.md", "root/c.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("words")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "root")
    found = [passage.file for passage in read_passages(tmp_path / "root")]
    assert found == ["c.md", "link/a.md"]


@given(
    st.lists(st.lists(st.sampled_from(["a", "bc", "d e"]), max_size=9).map(" ".join), max_size=30),
    st.integers(1, 8),
)
def test_passages_hold_every_word_in_order_on_its_line(content, words):
    text = "\n".join(content)
    found = list(cut(text, words=words))
    assert " ".join(part for _, part in found).split() == text.split()
    for number, part in found:
        assert 1 <= len(part.split()) <= words
        assert part.split()[0] in content[number - 1].split()
    numbers = [number for number, _ in found]
    assert numbers == sorted(numbers)


def test_many_empty_lines_are_cut_in_linear_time():
    start = time.process_time()
    found = list(cut("one" + "\n" * 10_000 + "two\n" + "\n" * 10_000 + "three", words=2))
    assert found == [(1, "one" + "\n" * 10_000 + "two"), (20_002, "three")]
    assert time.process_time() - start < 2  # 0.02; 8 where each line counts all before


@pytest.fixture(scope="module")
def tfds_dir(tfds_data_dir, pydocs):
    """Where `pydocs` is prepared, by a process that does not check the types of every word."""
    return tfds_data_dir


@pytest.mark.slow
@pytest.mark.parametrize("task", ["docstring_to_code", "title_to_description"])
@pytest.mark.usefixtures("unchecked")
def test_pydocs_asks_and_answers(tfds_dir, task):
    data = load_retrieval("pydocs", "test", task=task)
    whole = load_retrieval("pydocs", "test", task=task, corpus="all")
    assert data.queries == whole.queries
    assert len(whole.documents) > 5 * len(data.documents)
    for one in (data, whole):
        assert len(set(one.document_ids)) == len(one.documents) == len(one.labels)
        assert len({normalized(text) for text in one.documents}) == len(one.documents)
        assert len({normalized(text) for text in one.queries}) == len(one.queries)
        assert set(one.qrels.query.tolist()) == set(range(len(one.queries)))
        assert one.qrels.document.max() < len(one.documents)
        assert (one.qrels.grade == 1).all()
        assert (np.diff(one.qrels.query) >= 0).all()
    # The same answers, wherever they are found.
    for query, here, there in zip(data.qrels.query, data.qrels.document, whole.qrels.document,
                                  strict=True):  # fmt: skip
        assert data.documents[here] == whole.documents[there], query
    if task == "docstring_to_code":
        at = data.document_ids.index(data.query_ids[4])
        assert data.qrels.document[data.qrels.query == 4].tolist() == [at]
        assert data.queries[4] not in data.documents[at]
    assert data.class_names[data.labels[0]] in (data.document_ids[0].split(".")[0], "python")


@pytest.mark.slow
def test_documents_to_train_on_are_docstring_and_code(tfds_dir):
    data = load_retrieval("pydocs", "validation")
    documents = load_documents("pydocs", "validation")
    first = data.qrels.document[0]
    assert documents[0] == f"{data.queries[0]}\n\n{data.documents[first]}"
    assert load_documents("pydocs", "validation", text_key="code")[0] == data.documents[first]


@pytest.fixture
def manuals(monkeypatch):
    """A function that lists texts of `manuals` made of eight pages, the last one named by none.

    Each other page is named together with another; three pages train, two validate, three test.
    """
    parts = {"train": (0, 1, 2), "validation": (3, 4), "test": (5, 6, 7), "all": range(8)}

    def texts(split):
        return [f"{page} " * PAGE for page in parts[split]]

    def pages(name, split, data_dir):
        own = list(parts[split])
        see = [[f"{(at + 1) % 7}", f"{(at + 2) % 7}"] if at < 7 else [] for at in own]
        return Pages([str(at) for at in own], texts(split), see)

    monkeypatch.setattr("rml.data.text._pages", pages)
    return texts


def test_splits_of_manuals_have_no_document_in_common(manuals):
    found = {
        split: load_documents("manuals", split) for split in ("train", "validation", "test", "all")
    }
    assert [len(own) for own in found.values()] == [3, 2, 2, 7]  # a page that is unrelated is none
    for split, own in found.items():
        assert own == [text[:PAGE] for text in manuals(split)][: len(own)]
    assert not set(found["train"]) & set(found["validation"] + found["test"])
    assert not set(found["validation"]) & set(found["test"])
    # Whatever asks, the pages that train are searched.
    for split in ("train", "validation", "test"):
        assert load_retrieval("manuals", split).documents == found["train"]


@pytest.mark.slow
def test_names_that_do_not_exist(tfds_dir):
    with pytest.raises(UserError, match="did you mean 'pydocs'"):
        load_retrieval("pydoc", "test")
    with pytest.raises(UserError, match="did you mean 'docstring_to_code'"):
        load_retrieval("pydocs", "test", task="docstring_to_cod")
    with pytest.raises(UserError, match="unknown corpus of pydocs 'everything'"):
        load_retrieval("pydocs", "test", corpus="everything")
    with pytest.raises(DataError, match="there is no split 'dev'"):
        load_retrieval("pydocs", "dev")
    with pytest.raises(DataError, match=r"no feature 'body'; it has \['code', 'description'"):
        load_text("pydocs", "test", text_key="body")


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """A directory with a prepared data set, of which "unlabelled" has the label -1."""
    tmp_path = tmp_path_factory.mktemp("news")
    tfds = pytest.importorskip("tensorflow_datasets")

    class News(tfds.core.GeneratorBasedBuilder):
        """Texts with classes, as ag_news_subset has them."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {
                "description": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["world", "sport"]),
                "score": np.float32,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(6),
                "test": self._generate_examples(3),
                "unlabelled": self._generate_examples(4, labelled=False),
            }

        def _generate_examples(self, count, labelled=True):
            for i in range(count):
                label = i % 3 == 0 if labelled else -1
                yield i, {"description": f"Text {i} – news", "label": label, "score": 0.5}

    with contextlib.redirect_stdout(io.StringIO()):
        News(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return tmp_path


def test_classes_of_enough_texts_are_counted_without_those_of_none(news):
    few, fewer = (
        load_text("news", split, text_key="description", min_examples=2, data_dir=news)
        for split in ("test", "test+unlabelled")
    )
    assert (fewer.texts, fewer.labels.tolist(), fewer.class_names) == (
        few.texts, few.labels.tolist(), few.class_names,
    )  # fmt: skip
    with pytest.raises(DataError, match="no class of 'label' has 2 texts, the largest has 0"):
        load_text("news", "unlabelled", text_key="description", min_examples=2, data_dir=news)


def test_texts_of_a_tfds_data_set(news):
    tmp_path = news
    read = load_text("news", "train[1:]+test", text_key="description", data_dir=tmp_path)
    assert read.texts == [f"Text {i} – news" for i in (1, 2, 3, 4, 5, 0, 1, 2)]
    assert read.labels.tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert read.class_names == ("world", "sport")
    few = load_text("news", "test", text_key="description", min_examples=2, data_dir=tmp_path)
    assert (few.texts, few.labels.tolist()) == (["Text 1 – news", "Text 2 – news"], [0, 0])
    assert few.class_names == ("world",)
    assert (
        load_documents("news", "test", text_key="description", data_dir=tmp_path)[0]
        == "Text 0 – news"
    )
    with pytest.raises(DataError, match="no feature 'text'"):
        load_text("news", "test", data_dir=tmp_path)
    with pytest.raises(DataError, match="'score' is no text and no class"):
        load_text("news", "test", text_key="description", label_key="score", data_dir=tmp_path)


def test_answers_and_first_queries_of_a_collection(collection):
    data = load_retrieval(f"beir:{collection}", "test")
    assert [array.tolist() for array in data.answers] == [[0, 1], [0, 1], [1, 2]]
    first = data.first_queries(1)
    assert (first.queries, first.query_ids) == (["add"], ["q1"])
    assert [array.tolist() for array in first.qrels] == [[0], [0], [1]]
    assert (first.documents, first.document_ids) == (data.documents, data.document_ids)
    check_collection(data.first_queries(2))
    check_collection(data.first_queries(10))
