import numpy as np

from rml.ops.shares import whole_part


def test_a_product_just_short_of_a_whole_number_is_that():
    assert 0.29 * 100 < 29
    assert whole_part(0.29 * 100) == 29
    for n in range(1, 200):
        assert [whole_part(k / n * n) for k in range(n + 1)] == list(range(n + 1))


def test_what_lies_between_is_rounded_down():
    values = np.arange(0.0, 40) + 0.999
    assert [whole_part(value) for value in values] == list(range(40))
