"""How queries and their documents arise from examples, on ones that can be read at a glance."""

import numpy as np

from rml.data.collections import PAIRINGS, Pages, Pairing, paired, related, without_words

READ = {
    "id": ["a", "b", "c", "d", "e"],
    "ask": ["red bird", "Red  bird!", "blue", "big green fish", "a grey mouse"],
    "find": ["It flies high.", "It sings.", "It is one.", "it SINGS", "Short"],
    "kind": ["x", "y", "x", "x", "y"],
}


def test_equal_queries_share_their_answers_and_equal_documents_are_one():
    found = paired(READ, Pairing("id", "ask", "find", group="kind"), asked=READ["id"])
    assert found.queries == ["red bird", "blue", "big green fish", "a grey mouse"]
    assert found.documents == ["It flies high.", "It sings.", "It is one.", "Short"]
    judged = list(zip(found.qrels.query, found.qrels.document, strict=True))
    assert judged == [(0, 0), (0, 1), (1, 2), (2, 1), (3, 3)]
    assert (found.class_names, found.labels.tolist()) == (("x", "y"), [0, 1, 0, 1])


def test_short_texts_are_left_out_and_only_those_asked_ask():
    words = Pairing("id", "ask", "find", query_words=2, document_words=2)
    found = paired(READ, words, asked={"a", "c", "d", "e"})
    assert found.query_ids == ["a", "d"]
    assert found.document_ids == ["a", "b", "c"]
    assert found.qrels.document.tolist() == [0, 1]


def test_words_of_the_title_are_not_found_in_its_document():
    read = {
        "title": ["Grey Mouse (animal)"],
        "ask": ["rodent"],
        "find": ["A grey mouse; Mousetrap."],
    }
    found = paired(read, Pairing("title", "ask", "find", masked="title"), asked=read["title"])
    assert found.documents == ["A _ _; Mousetrap."]
    assert without_words("it is", "is it") == "it is"
    assert PAIRINGS["wiki_vital"]["description_to_text"].masked == "title"


def test_pages_that_a_third_names_together_find_each_other_in_the_pages_searched():
    names, long = ["q", "a", "b", "c", "hub", "lone"], "x" * 2000
    see = [[], [], [], [], ["q", "a", "b"], ["c"]]
    whole = Pages(names, [long] * 6, see)
    asking = Pages(["q", "lone"], [long] * 2, [[], ["c"]])
    searched = Pages(["a", "b", "c"], [long] * 3, [[]] * 3)
    found = related(asking, searched, whole)
    assert (found.query_ids, found.document_ids) == (["q"], ["a", "b"])
    assert found.qrels.document.tolist() == [0, 1]
    assert (len(found.queries[0]), len(found.documents[0])) == (300, 1500)
    again = related(searched, searched, whole)  # a page is no answer to itself
    judged = np.stack([again.qrels.query, again.qrels.document], axis=1)
    assert judged.tolist() == [[0, 1], [1, 0]]
