"""What configs of distillation across families of networks share."""

from typing import Any

from configs import parts


def convnet(*widths: int, features: int) -> dict[str, Any]:
    """A ConvNet of three stages that halve the sides."""
    return dict(
        name="convnet", widths=widths, kernel_sizes=(3, 3, 3), strides=(2, 2, 2), norm="batch",
        pooling="mean", features=features, activation="relu",
    )  # fmt: skip


def vit(width: int, depth: int) -> dict[str, Any]:
    """A ViT of 4x4 tokens."""
    return dict(
        name="vit_ti", width=width, depth=depth, heads=4, mlp_ratio=2, patch_size=7,
        pooling="gap", positions="learned",
    )  # fmt: skip


def mixer(width: int, depth: int) -> dict[str, Any]:
    """An MLP-Mixer of 4x4 tokens."""
    return dict(
        name="mixer_s", width=width, depth=depth, token_hidden=width, channel_hidden=2 * width,
        patch_size=7,
    )  # fmt: skip


def families(**own: Any) -> dict[str, Any]:
    """Teachers of three families on 10,000 images of clothes, and students on 1,000 others.

    Args:
      **own: What a config has beside it.

    Returns:
      The config's values.
    """
    return dict(
        seed=0,
        classes=10,
        data=parts.images(
            "fashion_mnist", (28, 28, 1), train="train[:1000]", validation="train[1000:2000]",
            teacher="train[10000:20000]", test="test",
        ),
        augment=dict(exchange=False, order=()),
        teachers=dict(
            convnet=convnet(16, 32, 48, features=48), vit=vit(48, 3), mixer=mixer(48, 3)
        ),
        teaching=dict(
            run="",  # an earlier run of the recipe, whose teachers are taken
            optimizer=parts.optimizer(learning_rate=3e-3, warmup_steps=50),
            train=parts.training(steps=500, batch_size=100, eval_every=0, checkpoint_every=500),
        ),
        students=dict(
            convnet=convnet(8, 16, 32, features=32), vit=vit(32, 3), mixer=mixer(32, 3)
        ),
        # Of maps exits have as many channels as the teachers' features; a grid of 4x4 tokens is
        # merged to one of 2x2.
        exits=dict(width=48, grid=2, heads=4),
        loss=dict(smoothing=0.0),  # of teachers
        # Weight of each teacher and of each loss, and the losses' numbers (of CRD how many training
        # images there are); own=0.0 gives an image what the teacher says of another. Exponents of
        # exits are all gamma, or rise to it from 1.
        given=dict(
            convnet=0.0, vit=0.0, mixer=0.0, own=1.0, label=1.0, smoothing=0.0, kd=0.0, dkd=0.0,
            dist=0.0, temperature=1.0, others=1.0, fitnet=0.0, rkd_distance=0.0, rkd_angle=0.0,
            cc=0.0, crd=0.0, images=1000.0, ofa=0.0, gamma=1.0, rising=0.0, paper=0.0,
            normalized=0.0, exits=0.0, hard=0.0,
        ),
        optimizer=parts.optimizer(learning_rate=3e-3, warmup_steps=20, weight_decay=1e-2),
        dtype="float32",
        precision="default",
        mesh=parts.mesh(),
        train=parts.training(
            steps=600, batch_size=50, eval_every=0, log_every=100, checkpoint_every=600
        ),
        evaluation=dict(batch_size=1000),
        timing=dict(repeats=10),
        **own,
    )  # fmt: skip


def tries(*given: float) -> dict[str, Any]:
    """Two weights of every side, near those that were chosen of three, with two rates each.

    Args:
      *given: Other learning rates.

    Returns:
      By side its values.
    """
    rates = dict(learning_rate=given or (1.2e-2, 2.4e-2))
    return dict(
        label=dict(smoothing=(0.1, 0.2), **rates),
        kd=dict(kd=(0.9,), temperature=(1.0, 2.0), **rates),
        dkd=dict(others=(0.5, 2.0), temperature=(1.0,), **rates),
        dist=dict(dist=(1.0, 3.0), **rates),
        fitnet=dict(fitnet=(0.1, 1.0), **rates),
        rkd_distance=dict(rkd_distance=(5.0, 25.0), **rates),
        rkd_angle=dict(rkd_angle=(5.0, 20.0), **rates),
        cc=dict(cc=(4.0, 20.0), **rates),
        crd=dict(crd=(0.01, 0.05), **rates),
        enhanced=dict(gamma=(1.0, 1.5), **rates),
        ofa=dict(gamma=(1.0, 1.5), **rates),
    )
