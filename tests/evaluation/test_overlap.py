import numpy as np
import pytest

from rml.evaluation import rouge_n, same_first_line


def test_runs_count_as_often_as_both_texts_have_them():
    written = ["The cat, the CAT the cat sat.", "one two three four"]
    references = ["the cat sat; the cat ran", "zero one two three"]
    found = rouge_n(written, references)
    # Written: the-cat 3, cat-the 2, cat-sat. Reference: the-cat 2, cat-sat, sat-the, cat-ran.
    np.testing.assert_allclose(found.precision, [3 / 6, 2 / 3])
    np.testing.assert_allclose(found.recall, [3 / 5, 2 / 3])
    np.testing.assert_allclose(found.f1, [2 * 3 / (6 + 5), 2 / 3])
    single = rouge_n(written, references, n=1)
    np.testing.assert_allclose(single.recall, [5 / 6, 3 / 4])
    np.testing.assert_allclose(single.precision, [5 / 7, 3 / 4])
    np.testing.assert_allclose(rouge_n(written, references, n=3).f1, [2 / 9, 1 / 2])


def test_words_are_letters_and_digits_in_lower_case():
    found = rouge_n(["numpy.float32[x-1] é!"], ["NumPy float32, x 1"])
    assert found.f1.tolist() == [1.0]


def test_texts_without_a_run_have_no_overlap():
    found = rouge_n(["word", "", "a b"], ["word", "a b", "..."])
    assert not np.any(found)
    assert rouge_n([], []).f1.shape == (0,)


def test_first_lines_are_compared_without_blanks():
    written = ["\n  Return x. \nmore", "Return y.", "", "a\nb"]
    references = ["Return x.\nother", "Return x.", "\n", "b\na"]
    assert same_first_line(written, references).tolist() == [True, False, True, False]


def test_bad_input_is_named():
    for call in (rouge_n, same_first_line):
        with pytest.raises(ValueError, match="1 texts, 2 references"):
            call(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="n is 0, expected at least one"):
        rouge_n(["a"], ["a"], n=0)
