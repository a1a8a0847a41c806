"""A newcomer's own data: without labels, collapsed, odd, and claims that are not about it."""

import json
import logging
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import registry
from experiments.common.claims import other_data
from experiments.common.pretraining import constant_loss
from rml.errors import UserError
from rml.training import Claim, RunDirectory, measure_claims

SHORT = {
    "data.image_shape": (8, 8, 1), "train.batch_size": 16, "train.steps": 4, "train.log_every": 1,
    "train.eval_every": 0, "optimizer.warmup_steps": 1, "evaluation.batch_size": 20,
}  # fmt: skip
PAPER = np.full((60, 8, 8), 255, np.uint8)


@pytest.fixture
def warnings():
    """What is logged as a warning, whatever other tests did to the loggers above."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("rml.experiments")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def run(path, folder, values):
    flags = [f"--config.{key}={value}" for key, value in (SHORT | values).items()]
    config = registry.read_config(path, flags)
    directory = RunDirectory(folder / "run", config.to_dict())
    try:
        return registry.find_experiment(config.experiment).run(config, directory)
    finally:
        directory.close()


@pytest.mark.parametrize(
    ("losses", "since"),
    [((3.0, 2.0, 2.0, 2.0), 2), ((2.0, 2.0, 2.0, 1.0), 0), ((2.0, 2.0), 0), ((2.0, 2.1, 2.0), 0)],
)
def test_a_loss_is_constant_where_its_last_lines_agree(tmp_path, losses, since):
    lines = [{"step": n, "time": 0.0, "train/loss": x} for n, x in enumerate(losses, 1)]
    lines.insert(1, {"step": 1, "time": 0.0, "eval/knn": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = constant_loss(SimpleNamespace(path=tmp_path), {"augment": {}})
    assert bool(found) == bool(since)
    assert not since or f"stayed at 2 since step {since} or before" in found
    of_texts = constant_loss(SimpleNamespace(path=tmp_path), {})
    assert not since or of_texts == found.removesuffix(", or change augment") != found


@pytest.mark.slow
def test_images_without_labels_that_collapse(tmp_path, warnings):
    """All images are one sheet of white paper, and stay white: nothing tells them apart."""
    np.savez(tmp_path / "paper.npz", image=PAPER)
    values = {"data.name": f"npz:{tmp_path}/paper.npz"}
    values |= {f"augment.random_{name}.fill": 1.0 for name in ("affine", "erase")}
    metrics = run("configs/contrastive/simclr_digits.py", tmp_path, values)
    assert set(metrics) == {"rankme", "rankme_untrained", "participation_ratio", "uniformity"}
    assert metrics["uniformity"] == pytest.approx(0, abs=1e-5)
    constant = math.log(2 * SHORT["train.batch_size"] - 1)
    for one in (
        "paper.npz are training images too",
        "has no labels: nearest neighbours and probes are left out",
        "the encoder has collapsed: features of all test images are equal",
        f"the loss has stayed at {constant:.4g} since step 2 or before",
    ):
        assert sum(one in line for line in warnings) == 1, warnings
    assert len(warnings) == 4
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn == {"embedding.png", "loss.png", "views.png"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive/supcon_mnist5k", "hydra/hydra_digits"])
def test_losses_that_need_labels_refuse_before_training(name, tmp_path, tfds_data_dir):
    np.savez(tmp_path / "bare.npz", image=np.arange(60 * 64, dtype=np.uint8).reshape(60, 8, 8))
    values = {"data.name": f"npz:{tmp_path}/bare.npz"}
    with pytest.raises(UserError, match=r"needs labels, of which npz:.*bare\.npz has none"):
        run(f"configs/{name}.py", tmp_path, values)
    assert not (tmp_path / "run" / "checkpoints").exists()


BOTH = "train and test are both 'train' of digits"


class Reached(Exception):
    """What would take long has begun."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "part", "stop", "told"),
    [
        (
            "kernels/classification_digits",
            "data.test=train[:50%]",
            "kernels.classification.for_each",
            "test images of digits are training images too",
        ),
        ("fewshot/base_digits", "data.held_out=train", "fewshot.base_training.train", BOTH),
        (
            "fewshot/compare_digits",
            "data.held_out=train[:50%]",
            "fewshot.features.image_encoder",
            "test images of digits are training images too",
        ),
    ],
)
def test_recipes_warn_of_odd_data_before_they_train(
    config, part, stop, told, tmp_path, warnings, monkeypatch, tfds_data_dir
):
    def reached(*args, **options):
        raise Reached

    monkeypatch.setattr(f"experiments.{stop}", reached)
    config = registry.read_config(f"configs/{config}.py", [f"--config.{part}"])
    config.data.update(dict(name="digits", image_shape=(8, 8, 1)))
    recipe = registry.find_experiment(config.experiment)
    with pytest.raises(Reached):
        recipe.run(config, RunDirectory(tmp_path / "run", config.to_dict()))
    assert len(warnings) == 1
    assert told in warnings[0]


def test_a_single_test_image_is_refused_before_training(tmp_path):
    np.savez(tmp_path / "few.npz", image=PAPER[:5])
    values = {"data.name": f"npz:{tmp_path}/few.npz"}
    with pytest.raises(UserError, match=r"data.test='test' of npz:.* holds 1 image, .* at least 2"):
        run("configs/contrastive/simclr_digits.py", tmp_path, values)


def test_every_config_names_what_warps_and_boxes_are_filled_with():
    named = 0
    for path in registry.config_files():
        config = registry.read_config(str(registry.ROOT / path))
        for name in ("random_affine", "random_erase"):
            options = config.get("augment", {}).get(name)
            if options is not None:
                named += 1
                # Icons lie on white paper; photographs go on beyond their edge.
                photographs = "edge" if "terminator_cifar10" in path else 0.0
                assert options.fill == (1.0 if "icons" in path else photographs), path
    assert named > 20


@pytest.mark.parametrize(
    ("written", "value"), [("1", 1), ("edge", "edge"), ("(1, 1, 0.5)", (1, 1, 0.5))]
)
def test_a_fill_takes_a_number_a_tuple_or_a_word(written, value):
    path = str(registry.ROOT / "configs/contrastive/simclr_digits.py")
    config = registry.read_config(path, [f"--config.augment.random_affine.fill={written}"])
    assert config.augment.random_affine.fill == value


def test_claims_are_judged_on_the_data_of_the_file(tmp_path):
    path = str(registry.ROOT / "configs/contrastive/simclr_mnist5k.py")
    own = registry.read_config(path)
    assert other_data(own, path) == ""
    for name in ("folder:photos", "digits"):
        changed = registry.read_config(path, [f"--config.data.name={name}"])
        assert other_data(changed, path) == name
    # A file of one's own is held against all configs of the recipe.
    file = tmp_path / "mine.py"
    shutil.copy(path, file)
    assert other_data(changed, file) == ""
    changed.data.name = "folder:photos"
    assert other_data(changed, file) == "folder:photos"
    changed.experiment = "contrastive.mine"  # a recipe of one's own has no other data
    assert other_data(changed, file) == ""


def test_a_claim_on_other_data_shows_its_value_without_a_verdict():
    stated = {"stated": "2025-01-01", "null": "z"}
    bound = Claim("m is above 0.1", "m", ">=", 0.1, "a paper", **stated)
    theorem = Claim("e never grows", "e", "<=", 0.0, "a theorem", any_data=True, **stated)
    metrics = {"m": 0.5, "e": 0.0, "z": 0.3}
    here, everywhere = measure_claims((bound, theorem), metrics, other_data="folder:photos")
    assert (here["value"], here["holds"], here["note"]) == (
        0.5,
        None,
        "not judged on folder:photos",
    )
    assert (everywhere["holds"], everywhere["note"]) == (True, "")
    assert (here["null_value"], everywhere["null_value"]) == (0.3, 0.3)
    unmeasured = bound.measure({}, other_data="folder:photos")
    assert (unmeasured["value"], unmeasured["null_value"]) == (None, None)
    assert measure_claims((bound,), metrics)[0]["holds"] is True
    with pytest.raises(KeyError):
        bound.measure({})
