"""SimCLR on CIFAR-10 with a ResNet-18.

python -m experiments.run --config=configs/contrastive/simclr_cifar10.py \
    --workdir=runs/simclr_cifar10

Not run here, so there is no result to expect from this code. Network, batch and length are lighter
than the paper's.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    batch_size, epochs, images = 512, 500, 50_000
    steps = epochs * images // batch_size
    return ConfigDict(
        dict(
            experiment="contrastive.simclr",
            seed=0,
            data=dict(
                name="cifar10",
                train="train",
                test="test",
                image_shape=(32, 32, 3),
                image_dtype="uint8",
                data_dir=config_dict.placeholder(str),
            ),
            augment=dict(
                order=("random_resized_crop", "random_flip", "color_jitter", "random_grayscale"),
                random_resized_crop=dict(size=32, scale=(0.08, 1.0)),
                random_flip=dict(),
                color_jitter=dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
                random_grayscale=dict(p=0.2),
            ),
            model=dict(name="resnet18", stem="cifar"),
            head=dict(features=128, norm=True),
            loss=dict(temperature=0.5),
            optimizer=dict(
                name="lars",
                learning_rate=1.0 * batch_size / 256,
                schedule="warmup_cosine",
                warmup_steps=10 * images // batch_size,
                final_scale=0.0,
                weight_decay=1e-6,
                momentum=0.9,
                b2=0.999,
                clip_norm=0.0,
                accumulate=1,
                ema_decay=0.0,
            ),
            dtype="float32",
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
            train=dict(
                batch_size=batch_size,
                steps=steps,
                log_every=50,
                eval_every=10 * images // batch_size,
                checkpoint_every=2 * images // batch_size,
            ),
            evaluation=dict(batch_size=1000, knn_k=200, knn_temperature=0.1),
        )
    )
