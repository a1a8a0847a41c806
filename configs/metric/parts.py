"""Parts of the configs of metric learning."""

from typing import Any

from ml_collections import ConfigDict

from configs import parts


def methods() -> dict[str, Any]:
    """The methods that are compared, with the options that they begin from."""
    sphere = dict(scale=10.0)
    return dict(
        # The public code keeps class vectors at unit length after every update.
        normalized_softmax=sphere | dict(project=True),
        learned_scale=sphere,
        cosface=dict(scale=20.0, margin=0.1, margin_kind="cosine"),
        arcface=dict(scale=20.0, margin=0.1, margin_kind="angle"),
        softmax=dict(smoothing=0.1),
        triplet=dict(margin=0.1, mining="semi-hard"),
        triplet_all=dict(margin=0.1, mining="all"),
        contrastive=dict(margin=1.0),
        prototypical=dict(temperature=4.0),
        supcon=dict(temperature=0.1),
    )


def tries(steps: int) -> dict[str, Any]:
    """Options that each method chooses from on validation classes: two at two rates each.

    Args:
      steps: Training steps of a try.
    """
    options = dict(
        normalized_softmax=("scale", (10.0, 20.0)),
        learned_scale=("scale", (10.0, 20.0)),
        cosface=("margin", (0.1, 0.3)),
        arcface=("margin", (0.1, 0.3)),
        softmax=("smoothing", (0.0, 0.1)),
        triplet=("margin", (0.1, 0.3)),
        triplet_all=("margin", (0.1, 0.3)),
        contrastive=("margin", (1.0, 1.5)),
        prototypical=("temperature", (1.0, 4.0)),
        supcon=("temperature", (0.05, 0.1)),
    )
    return dict(steps=steps) | {
        method: tuple(
            f"methods.{method}.{name}={value} optimizer.learning_rate={rate}"
            for rate in (1e-3, 3e-3)
            for value in values
        )
        for method, (name, values) in options.items()
    }


def novel_classes(
    *, batch: tuple[int, int], steps: int, try_steps: int, **changes: Any
) -> ConfigDict:
    """A config that compares methods on novel classes.

    Args:
      batch: Classes in a batch, and examples of each.
      steps: Training steps.
      try_steps: Those of a try.
      **changes: Parts that replace others or are added.
    """
    given = dict(
        head=dict(features=64),
        loss=None,
        batch=dict(zip(("classes", "examples"), batch, strict=True)),
        methods=methods(),
        tries=tries(try_steps),
        splits=1,
        optimizer=parts.optimizer(learning_rate=1e-3, warmup_steps=20),
        train=parts.training(
            batch_size=batch[0] * batch[1],
            steps=steps,
            eval_every=0,
            checkpoint_every=steps,
        ),
        evaluation=dict(batch_size=500, shots=(1, 5), draws=50),
        growth=dict(sizes=(64, 128, 256, 512)),
    )
    return parts.pretraining("metric.novel_classes", **given | changes)


def novel_characters(*, splits: int, **classes: Any) -> ConfigDict:
    """A config that compares methods on novel characters, each in many fonts.

    Args:
      splits: Splits of the characters.
      **classes: Characters of each part, numbered from 0 in the order of Unicode, or how many.
    """
    return novel_classes(
        batch=(16, 8), steps=800, try_steps=300,
        data=parts.images(
            "glyphs", (28, 28, 1), base="train", held_out="test", validation="all", novel="all"
        ),
        classes=dict(**classes, seed=0),
        augment=parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0),
        splits=splits,
    )  # fmt: skip


def mixing_methods() -> dict[str, Any]:
    """Three losses without mixtures, with them, and with what mixtures are compared with."""
    losses: dict[str, Any] = dict(
        contrastive=dict(margin=0.3),
        multi_similarity=dict(beta=2.0, gamma=40.0, margin=0.5),
        proxy_anchor=dict(scale=16.0, margin=0.1),
    )
    modes: dict[str, Any] = dict(
        none=dict(mode="none"),
        twice=dict(mode="none", updates=2),
        input=dict(mode="input"),
        feature=dict(mode="feature"),
        embedding=dict(mode="embedding"),
        hard=dict(mode="embedding", targets="hard"),
        # Synthetic positives and negatives alone, whose targets are whole.
        positives=dict(mode="embedding", kinds=("positive-positive",)),
        negatives=dict(mode="embedding", kinds=("negative-negative",)),
    )
    own = dict(
        contrastive=tuple(modes),
        multi_similarity=("none", "twice", "input", "feature", "embedding", "hard"),
        proxy_anchor=("none", "twice", "feature", "embedding"),
    )
    return {
        f"{loss}_{mode}": dict(loss=loss, updates=1, targets="mixed") | options | modes[mode]
        for loss, options in losses.items()
        for mode in own[loss]
    }


def mixing_tries(steps: int) -> dict[str, Any]:
    """Options that each method chooses from on validation classes: two margins at two rates each.

    Args:
      steps: Training steps of a try.
    """
    margins = dict(contrastive=(0.3, 0.5), multi_similarity=(0.5, 0.7), proxy_anchor=(0.1, 0.3))
    return dict(steps=steps) | {
        method: tuple(
            f"methods.{method}.margin={margin} optimizer.learning_rate={rate}"
            for rate in (1e-3, 3e-3)
            for margin in margins[options["loss"]]
        )
        for method, options in mixing_methods().items()
    }
