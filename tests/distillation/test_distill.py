"""One call trains a student beside a teacher by any method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import METHODS, Network, Outputs, distill
from rml.errors import UserError
from rml.models import MLP

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8))
TURN = RNG.standard_normal((8, 3))
TRUTH = (X @ TURN).argmax(1)
LABELS = np.where(RNG.random(60) < 0.3, (TRUTH + 1) % 3, TRUTH)
IMAGES = jnp.asarray(X, jnp.float32)


def teacher(images):
    """Knows the truth; its features are another turn of the images."""
    return Outputs(3 * images @ jnp.asarray(TURN, jnp.float32), images[:, :6] + images[:, 2:])


STUDENT = Network(MLP(hidden=(16,), features=5), classes=3)


def train(method, **options):
    given = {"key": jax.random.key(0), "steps": 60, "batch_size": 20, "learning_rate": 2e-2}
    return distill(method, teacher, STUDENT, IMAGES, jnp.asarray(LABELS), **given | options)


@pytest.mark.parametrize("method", ["fitnet", "crd"])
def test_losses_fall(method):
    found = train(method, steps=40)
    assert found.losses.shape == (40,)
    assert np.isfinite(found.losses).all()
    assert found.losses[-5:].mean() < found.losses[:5].mean()
    assert set(found.variables) == {"params"}
    assert set(found.variables["params"]) == {"encoder", "classifier"}


def right(found, labels=TRUTH):
    logits = STUDENT.apply(found.variables, IMAGES).logits
    return float((np.asarray(logits).argmax(1) == labels).mean())


def test_a_teacher_that_knows_better_than_labels_is_worth_its_ratio():
    by_label, by_teacher = (train("kd", ratio=ratio) for ratio in (0.0, 1.0))
    assert right(by_teacher) > right(by_label) + 0.1
    assert right(by_label, LABELS) > right(by_teacher, LABELS) + 0.1
    np.testing.assert_array_equal(by_label.ratios, 0)


def test_a_learned_ratio_finds_that_out_with_batch_statistics_of_the_students_own():
    held = (IMAGES[40:], jnp.asarray(TRUTH[40:]))
    found = distill(
        "kd", teacher, Network(MLP(hidden=(16,), features=5, norm="batch"), classes=3), IMAGES,
        jnp.asarray(LABELS), key=jax.random.key(0), steps=60, batch_size=20, learning_rate=2e-2,
        ratio="trilateral", validation=held, ratio_rate=0.05, options={"temperature": 1.0},
    )  # fmt: skip
    assert found.ratios[-5:].mean() > found.ratios[0] + 0.1
    statistics = jax.tree.leaves(found.variables["batch_stats"])
    assert all(np.isfinite(leaf).all() for leaf in statistics)
    assert any(np.abs(leaf).max() > 0.1 for leaf in statistics)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("kdd", {}, "distillation method 'kdd'"),
        ("kd", {"batch_size": 61}, "batch_size is 61, expected 1 to 60"),
        ("kd", {"ratio": 1.5}, r"ratio is 1.5, expected a share in \[0, 1\]"),
        ("kd", {"ratio": "learned"}, "ratio 'learned'"),
        ("kd", {"ratio": "trilateral"}, "needs validation data"),
        ("crd", {"ratio": "trilateral"}, "crd reads features"),
    ],
)
def test_wrong_arguments_are_named(method, options, message):
    with pytest.raises(UserError, match=message):
        train(method, **options)


def test_the_table_says_what_a_loss_reads():
    assert {row.reads for row in METHODS.values()} == {"logits", "features"}
    assert {name for name, row in METHODS.items() if row.maps == "both"} == {"crd"}
