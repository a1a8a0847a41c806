"""Writes fisher_merging.npz with the authors' functions.

    python tests/merging/golden/make_fisher_merging.py path/to/model_merging

The path is a clone of mmatena/model_merging at 46802f9. It needs TensorFlow, which rml does not.
"""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import tensorflow as tf

sys.path.insert(0, sys.argv[1])
# For models of their own they import what no function here uses.
unused = ("datasets", "tensorflow_probability", "transformers")
with mock.patch.dict(sys.modules, dict.fromkeys(unused, mock.MagicMock())):
    from model_merging.fisher import _compute_exact_fisher_for_batch
    from model_merging.merging import _l2_norm_of_fisher, _merge_with_coeffs


class Classifier(tf.Module):
    """Classifies the sum of tokens' hidden units, with weights."""

    num_labels = 3

    def __call__(self, batch, training):
        hidden = tf.tanh(batch["tokens"] @ self.given[0] + self.given[1])
        pooled = tf.reduce_sum(hidden * batch["weights"][..., None], axis=1)
        return SimpleNamespace(logits=pooled @ self.given[2] + self.given[3])


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    experts = [rng.normal(size=(3, *own)) for own in ((2, 5), (4,))]
    fishers = [np.exp(3 * rng.normal(size=own.shape) - 5) for own in experts]
    coefficients, floor = np.array([0.2, 0.5, 0.3]), 0.01
    found = {"coefficients": coefficients, "floor": floor}
    found |= {f"experts{i}": own for i, own in enumerate(experts)}
    found |= {f"fishers{i}": own for i, own in enumerate(fishers)}
    rows = [[tf.constant(own[j]) for own in experts] for j in range(3)]
    parts = [[tf.constant(own[j]) for own in fishers] for j in range(3)]
    for favour, normalise in itertools.product((False, True), repeat=2):
        out = [tf.Variable(own) for own in rows[0]]
        sizes = [_l2_norm_of_fisher(own) for own in parts] if normalise else None
        _merge_with_coeffs(out, rows, coefficients.tolist(), parts, floor, favour, sizes)
        found |= {f"merged{i}_{favour}_{normalise}": own for i, own in enumerate(out)}
    variables = [tf.Variable(rng.normal(size=own)) for own in ((4, 6), (6,), (6, 3), (3,))]
    batch = {"tokens": rng.normal(size=(5, 3, 4)), "weights": rng.uniform(size=(5, 3))}
    given = {name: tf.constant(own) for name, own in batch.items()}
    model = Classifier()
    model.given = variables
    sums = _compute_exact_fisher_for_batch(given, model, variables, True)
    found |= batch | {f"variable{i}": own for i, own in enumerate(variables)}
    found |= {f"sum{i}": own for i, own in enumerate(sums)}
    np.savez_compressed(Path(__file__).with_name("fisher_merging.npz"), **found)
