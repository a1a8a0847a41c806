"""SimCLR on ImageNet with a ResNet-50.

python -m experiments.run --config=configs/contrastive/simclr_imagenet2012_resnet50.py \
    --workdir=runs/simclr_imagenet2012_resnet50

Not run here, so there is no result to expect from this code. Batch 4,096, LARS at 0.3 · batch / 256
with 10 epochs of warm-up, weight decay 1e-6, temperature 0.1. 100 epochs.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    batch_size, epochs, images = 4096, 100, 1_281_167
    steps = epochs * images // batch_size
    return ConfigDict(
        dict(
            experiment="contrastive.simclr",
            seed=0,
            data=dict(
                name="imagenet2012",
                train="train",
                test="validation",
                image_shape=(256, 256, 3),  # on the host: shorter side resized, centre kept
                image_dtype="uint8",
                data_dir=config_dict.placeholder(str),
            ),
            augment=dict(
                order=(
                    "random_resized_crop",
                    "random_flip",
                    "color_jitter",
                    "random_grayscale",
                    "gaussian_blur",
                ),
                random_resized_crop=dict(size=224, scale=(0.08, 1.0)),
                random_flip=dict(),
                color_jitter=dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
                random_grayscale=dict(p=0.2),
                gaussian_blur=dict(sigma=(0.1, 2.0), kernel_size=23, p=0.5),
            ),
            model=dict(name="resnet50"),
            head=dict(hidden=2048, features=128, norm=True),
            loss=dict(temperature=0.1),
            optimizer=dict(
                name="lars",
                learning_rate=0.3 * batch_size / 256,
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
            dtype="bfloat16",
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
            train=dict(
                batch_size=batch_size,
                steps=steps,
                log_every=100,
                eval_every=0,
                checkpoint_every=1000,
            ),
            evaluation=dict(batch_size=512, knn_k=200, knn_temperature=0.1),
        )
    )
