"""A sparse deep kernel machine beside the sparse Gaussian process of its kernel, 5,000 digits.

python -m experiments.run --config=configs/kernels/classification_mnist5k.py --workdir=runs/dkm

Under a minute and a half on 2 CPU cores. The settings were tried on `train[75%:]` alone, once.
Expected: accuracy and log-likelihood above the Gaussian process's.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.classification",
            seed=0,
            data=dict(
                name="mnist5k",
                train="train",
                test="test",
                total=4000,
                image_shape=(28, 28, 1),
                image_dtype="uint8",
                data_dir=config_dict.placeholder(str),
            ),
            model=dict(
                kernel="squared_exponential",
                depth=2,
                classes=10,
                inducing=100,
                width=10.0,
                samples=8,
                normalization="none",
                jitter=1e-4,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-2,
                schedule="warmup_cosine",
                warmup_steps=50,
                final_scale=0.0,
                weight_decay=0.0,
                momentum=0.9,
                b2=0.999,
                clip_norm=0.0,
                accumulate=1,
                ema_decay=0.0,
            ),
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
            train=dict(batch_size=250, steps=1000, log_every=25, checkpoint_every=500),
            evaluation=dict(batch_size=500),
        )
    )
