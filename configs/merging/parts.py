"""Parts of the configs of merging: the bed of experts, and cycles of multilevel training."""

from typing import Any

from ml_collections import ConfigDict

from configs import parts


def characters(*scripts: str) -> dict[str, Any]:
    """Every second character of some Unicode blocks, in up to 16 fonts, split by chance."""
    return dict(
        name="glyphs",
        scripts=scripts,
        train="all[:50%]",
        validation="all[50%:70%]",
        test="all[70%:]",
    )


def eight_tasks() -> dict[str, Any]:
    """Five groups of characters, two sets of digits and clothes."""
    return dict(
        latin=characters("Basic Latin"),
        accents=characters("Latin-1 Supplement"),
        greek=characters("Greek and Coptic"),
        cyrillic=characters("Cyrillic"),
        caucasus=characters("Armenian", "Georgian"),
        mnist5k=dict(name="mnist5k", train="train[:50%]", validation="train[50%:65%]", test="test"),
        digits=dict(name="digits", train="train[:60%]", validation="train[60%:]", test="test"),
        fashion=dict(
            name="fashion_mnist", train="train[:5%]", validation="train[90%:91%]", test="test[:10%]"
        ),
    )


def warps() -> dict[str, Any]:
    """Warps that keep a character the same, and rectangles erased."""
    return parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0)


def bed(experiment: str = "merging.bed", **changes: Any) -> ConfigDict:
    """A config of the bed, or of a recipe that trains one of its own.

    Args:
      experiment: Name of the recipe.
      **changes: Parts that replace those of the bed, or are added.
    """
    given = dict(
        experiment=experiment,
        seed=0,
        precision="default",
        dtype="float32",
        mesh=parts.mesh(),
        # Characters that the base is pretrained on; the tasks' are others.
        data=parts.images("glyphs", (28, 28, 1), train="train", test="test"),
        tasks=eight_tasks(),
        augment=warps(),  # of the base's characters
        augment_experts=warps() | dict(order=("random_affine",)),
        model=dict(
            name="vit_ti", width=64, depth=4, heads=4, patch_size=7, pooling="gap",
            positions="sincos2d",
        ),
        head=dict(classes=32, scale=20.0),
        loss=dict(smoothing=0.1),
        pretraining=dict(steps=1500, batch_size=128, learning_rate=2e-3, warmup_steps=100),
        optimizer=parts.optimizer(learning_rate=1e-3, warmup_steps=20),
        train=parts.training(
            steps=400, batch_size=32, eval_every=0, log_every=20, checkpoint_every=400
        ),
        evaluation=dict(batch_size=500, most=1000),
    )  # fmt: skip
    return ConfigDict(given | changes)


def methods() -> dict[str, Any]:
    """Options of the methods that are compared; a scale is chosen between its ends."""
    return dict(
        task_arithmetic=dict(scales=(0.05, 1.0)),
        ties=dict(scales=(0.1, 2.0), keep=0.2),
        dare=dict(scales=(0.05, 1.0), rate=0.5),
        # Where all coefficients start and their rate are chosen; images of each task in a batch.
        adamerging=dict(
            steps=60, batch_size=8, starts=(0.1, 0.3), learning_rates=(1e-3, 3e-3, 1e-2)
        ),
    )


def cycle() -> dict[str, Any]:
    """A V-cycle of multilevel training, and the learning rates that every arm tries."""
    return dict(
        before=0.05,  # steps before the model is made small, a warm-up, as a share
        small=0.5,  # small steps, as a share of the full model's
        alpha=0.5,
        rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        small_rate=2.0,  # learning rate of a level over that of the one above
        scheme="halves",  # as in the public code; figure 2 has neighbours
        layer_scheme="halves",
    )
