"""Parts of configs of contrastive and other self-supervised methods."""

from typing import Any

from ml_collections import ConfigDict

from configs import parts


def mlp(features: int, hidden: int = 256, **other: Any) -> dict[str, Any]:
    """A head or predictor of two layers with BatchNorm between them."""
    return dict(hidden=hidden, features=features, layers=2, norm=True) | other


def fashion() -> dict[str, Any]:
    """10,000 articles of clothing, mirrored and warped less than digits are, and all test images.

    Neighbours of raw pixels are right on most of them, and classes such as shirt, coat and pullover
    differ in little.
    """
    augment = parts.warps(degrees=10.0, scale=(0.7, 1.2), shear=10.0)
    augment["order"] = ("random_flip", *augment["order"])
    return dict(
        data=parts.images("fashion_mnist", (28, 28, 1), train="train[:10000]", test="test"),
        augment=augment | dict(random_flip=dict()),
    )


def as_many_images(config: ConfigDict, batch_size: int) -> str:
    """A variant of a smaller batch and as many images, its rate that of Adam by the square root."""
    share = config.train.batch_size / batch_size
    steps, warmup = config.train.steps * share, config.optimizer.warmup_steps * share
    return (
        f"train.batch_size={batch_size} train.steps={steps:.0f} "
        f"optimizer.warmup_steps={warmup:.0f} "
        f"optimizer.learning_rate={config.optimizer.learning_rate / share**0.5:.2g}"
    )


BARLOW_TWINS = dict(head=mlp(256, 512, layers=3), loss=dict(name="barlow_twins", redundancy=5e-3))
VICREG = dict(
    head=mlp(256, 512, layers=3),
    loss=dict(name="vicreg", invariance=25.0, variance=25.0, covariance=1.0),
)
SIMSIAM = dict(head=mlp(256, last_norm=True), predictor=mlp(256, 64), loss=dict(name="simsiam"))
BYOL = dict(
    head=mlp(128),
    predictor=mlp(128),
    loss=dict(name="byol"),
    momentum=dict(schedule="cosine", start=0.99),
)
SWAV = dict(
    head=mlp(64),
    prototypes=dict(number=100),
    loss=dict(name="swav", temperature=0.1, epsilon=0.05, iterations=3),
)
DINO = dict(
    head=mlp(64),
    prototypes=dict(number=256),
    loss=dict(name="dino", temperature=0.1, teacher_temperature=0.04, center_momentum=0.9),
    momentum=dict(schedule="cosine", start=0.99),
)
NNCLR = dict(
    head=mlp(128),
    predictor=mlp(128),
    loss=dict(name="nnclr", temperature=0.1),
    queue=dict(size=2048),
)

MOCO_V2 = dict(
    queue=dict(size=2048),
    momentum=dict(schedule="constant", start=0.99),
    batch_norm=dict(groups=8, key_statistics="shuffle"),
)
MOCO_V3 = dict(
    head=dict(hidden=256, features=64, norm=True, last_norm=True),
    predictor=dict(hidden=256, features=64, norm=True),
    momentum=dict(schedule="cosine", start=0.99),
)
DCL = dict(name="dcl", temperature=0.2, sigma=0.5)


def towers(loss: str, *, log_scale: float, bias: float) -> ConfigDict:
    """Line icons and their names, a convolutional encoder and a small transformer.

    Args:
      loss: Name of the loss.
      log_scale: Initial logarithm of the inverse temperature.
      bias: Initial bias of the logits.
    """
    augment = parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0)
    for step in ("random_affine", "random_erase"):
        augment[step]["fill"] = parts.fill(1.0)  # black on white
    return parts.pretraining(
        "contrastive.two_towers",
        data=parts.images("icons", (32, 32, 3)) | dict(text="name"),
        augment=augment,
        head=mlp(128),
        tokens=dict(vocabulary=2048, max_length=16),
        text=dict(depth=2, heads=4, mlp=256, dropout=0.0, remat=False),
        loss=dict(name=loss, log_scale=log_scale, bias=bias, learned=("log_scale", "bias")),
        train=parts.training(steps=600, eval_every=200),
    )
