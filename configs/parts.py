"""Parts that configs share: functions whose arguments are what differs."""

from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict


def mesh() -> dict[str, int]:
    """All devices along the data axis."""
    return dict(replica=1, data=-1, fsdp=1, model=1)


def optimizer(
    name: str = "adamw",
    *,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float = 1e-4,
    **other: Any,
) -> dict[str, Any]:
    """An optimiser with warm-up and cosine decay to zero, see `rml.training.build_optimizer`."""
    return dict(
        name=name, learning_rate=learning_rate, schedule="warmup_cosine", warmup_steps=warmup_steps,
        final_scale=0.0, weight_decay=weight_decay, momentum=0.9, b2=0.999, clip_norm=0.0,
        accumulate=1, ema_decay=0.0,
    ) | other  # fmt: skip


def source(name: str, **splits: Any) -> dict[str, Any]:
    """A data set by name, and what else is said of it, such as the split of each part."""
    return dict(name=name, data_dir=config_dict.placeholder(str), **splits)


def images(name: str, shape: tuple[int, int, int], **splits: Any) -> dict[str, Any]:
    """Images of bytes, brought to a shape; splits `train` and `test` unless others are given."""
    splits = splits or dict(train="train", test="test")
    return source(name, image_shape=shape, image_dtype="uint8", **splits)


def fill(value: float = 0.0) -> FieldReference:
    """What an augmentation puts where the image has nothing: the background's brightness, 0 to 1.

    Also one value a channel, "mean", or of warps "edge", for which the field takes any type.
    """
    return FieldReference(value, field_type=object)


def warps(
    degrees: float = 20.0, scale: tuple[float, float] = (0.7, 1.3), shear: float = 20.0
) -> dict[str, Any]:
    """Augmentation of light characters on black: an affine warp, then a rectangle erased."""
    return dict(
        exchange=False,
        order=("random_affine", "random_erase"),
        random_affine=dict(degrees=degrees, translate=0.1, scale=scale, shear=shear, fill=fill()),
        random_erase=dict(p=0.5, scale=(0.02, 0.1), fill=fill()),
    )


def small_warps() -> dict[str, Any]:
    """The same for digits of 8x8 pixels."""
    return warps(degrees=15.0, scale=(0.8, 1.2), shear=10.0)


def crops(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    blur: float | None = None,
    solarize: float | None = None,
) -> dict[str, Any]:
    """Augmentation of photographs as SimCLR's; jitter of brightness, contrast, saturation, hue."""
    names = ("brightness", "contrast", "saturation", "hue")
    steps: dict[str, Any] = dict(
        random_resized_crop=dict(size=size, scale=scale),
        random_flip=dict(),
        color_jitter=dict(zip(names, jitter, strict=True), p=0.8),
        random_grayscale=dict(p=0.2),
    )
    if blur is not None:
        steps["gaussian_blur"] = dict(sigma=(0.1, 2.0), kernel_size=23, p=blur)
    if solarize is not None:
        steps["solarize"] = dict(p=solarize)
    return dict(exchange=False, order=tuple(steps), **steps)


def convnet(
    features: int = 256, kernels: tuple[int, int] = (5, 3), strides: tuple[int, int] = (2, 2)
) -> dict[str, Any]:
    """Two convolutions and a dense layer, for images of 28x28 pixels."""
    return dict(
        name="convnet", widths=(32, 64), kernel_sizes=kernels, strides=strides, norm="batch",
        pooling="flatten", features=features, activation="relu",
    )  # fmt: skip


def small_convnet() -> dict[str, Any]:
    """The same for images of 8x8 pixels."""
    return convnet(features=128, kernels=(3, 3), strides=(1, 2))


def vit(name: str, **other: Any) -> dict[str, Any]:
    """A vision transformer on patches of 16x16 pixels, as MoCo v3 trains it."""
    # attention="fused" on TPUs: a kernel, compiled but not run here.
    return dict(
        name=name, patch_size=16, positions="sincos2d", freeze_patches=True, remat=True,
        attention="xla",
    ) | other  # fmt: skip


def pretraining(experiment: str, **parts: Any) -> ConfigDict:
    """A config of features learned from images.

    Args:
      experiment: Name of the experiment.
      **parts: Parts that replace those for 5,000 digits, or are added; None leaves a part out.
    """
    config = (
        dict(
            experiment=experiment,
            seed=0,
            data=images("mnist5k", (28, 28, 1)),
            augment=warps(),
            model=convnet(),
            head=dict(hidden=256, features=64),
            loss=dict(temperature=0.2),
            optimizer=optimizer(learning_rate=2e-3, warmup_steps=50),
            dtype="float32",
            precision="default",
            mesh=mesh(),
            train=training(steps=1000, eval_every=200),
            evaluation=dict(batch_size=500, knn_k=10, knn_temperature=0.07),
        )
        | parts
    )
    return ConfigDict({name: part for name, part in config.items() if part is not None})


def training(
    *, steps: int, eval_every: int, batch_size: int = 256, log_every: int = 25,
    checkpoint_every: int = 500,
) -> dict[str, int]:  # fmt: skip
    """Length and rhythm of a training."""
    return dict(
        batch_size=batch_size, steps=steps, log_every=log_every, eval_every=eval_every,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip


def small_lm(
    experiment: str, *, width: int, mlp: int, learning_rate: float, warmup_steps: int, steps: int,
    depth: int = 2, length: int = 256,
) -> dict[str, Any]:  # fmt: skip
    """Small language models of docstrings and code, in windows of `length` tokens."""
    return dict(
        experiment=experiment,
        seed=0,
        seeds=1,  # models of each variant
        precision="default",
        mesh=mesh(),
        data=source(
            "pydocs", train="train[:10%]", validation="validation[:30%]", test="test[:30%]"
        ),
        text=dict(vocabulary=1024, length=length, windows=256),
        model=dict(width=width, depth=depth, heads=4, kv_heads=4, mlp=mlp),
        optimizer=optimizer(
            learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=0.1
        ),
        train=training(
            steps=steps, batch_size=8, eval_every=0, log_every=20, checkpoint_every=steps // 2
        ),
    )


def cifar(
    experiment: str, name: str = "cifar10", *, batch_size: int, epochs: int, **parts: Any
) -> ConfigDict:
    """A config of features learned from CIFAR by a ResNet-18 with LARS."""
    epoch = 50_000 / batch_size
    given = dict(
        data=images(name, (32, 32, 3)) | dict(host_crops=False),
        augment=crops(32),
        model=dict(name="resnet18", stem="cifar"),
        head=dict(features=128, norm=True),
        loss=dict(temperature=0.5),
        optimizer=optimizer(
            "lars", learning_rate=1.0 * batch_size / 256, warmup_steps=int(10 * epoch),
            weight_decay=1e-6,
        ),
        train=training(
            batch_size=batch_size, steps=int(epochs * epoch), log_every=50,
            eval_every=int(10 * epoch), checkpoint_every=int(2 * epoch),
        ),
        evaluation=dict(batch_size=1000, knn_k=200, knn_temperature=0.1),
    )  # fmt: skip
    return pretraining(experiment, **given | parts)


IMAGENET = 1_281_167
"""Training images of ImageNet."""


def imagenet(
    experiment: str,
    *,
    batch_size: int,
    epochs: int,
    rate: float,
    warmup_epochs: int,
    name: str = "lars",
    weight_decay: float = 1e-6,
    **parts: Any,
) -> ConfigDict:
    """A config of features learned from ImageNet by a ResNet-50.

    Args:
      experiment: Name of the experiment.
      batch_size: Images of a step.
      epochs: Length of the training.
      rate: Learning rate for a batch of 256; it is scaled by the batch.
      warmup_epochs: Length of the warm-up.
      name: Name of the optimiser.
      weight_decay: Its weight decay.
      **parts: Further parts, and those that replace others.
    """
    given = dict(
        # Training images are cropped as they are stored; of those that are evaluated the host
        # resizes the shorter side and keeps the centre.
        data=images("imagenet2012", (256, 256, 3), train="train", test="validation")
        | dict(host_crops=True),
        augment=crops(224, jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5),
        model=dict(name="resnet50"),
        head=dict(hidden=2048, features=128, norm=True),
        loss=dict(temperature=0.1),
        optimizer=optimizer(
            name, learning_rate=rate * batch_size / 256, weight_decay=weight_decay,
            warmup_steps=warmup_epochs * IMAGENET // batch_size,
        ),
        dtype="bfloat16",
        train=training(
            batch_size=batch_size, steps=epochs * IMAGENET // batch_size, log_every=100,
            eval_every=0, checkpoint_every=1000,
        ),
        evaluation=dict(batch_size=512, knn_k=200, knn_temperature=0.1),
    )  # fmt: skip
    return pretraining(experiment, **given | parts)
