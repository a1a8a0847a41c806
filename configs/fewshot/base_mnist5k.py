"""Base training on handwritten digits: classes 0 to 4; novel classes 5 to 9.

python -m experiments.run --config=configs/fewshot/base_mnist5k.py --workdir=runs/base_mnist5k

There are too few classes for validation classes: options are chosen on the test split's images of
the base classes, which training does not see. Images of the novel classes are used by no choice.
Under a minute of CPU time.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="fewshot.base_training",
            seed=0,
            data=dict(
                name="mnist5k",
                base="train",
                held_out="test",
                validation="test",
                novel="all",
                image_shape=(28, 28, 1),
                image_dtype="uint8",
                data_dir=config_dict.placeholder(str),
            ),
            classes=dict(
                base=(0, 1, 2, 3, 4),
                validation="base",
                novel=(5, 6, 7, 8, 9),
                seed=config_dict.placeholder(int),
            ),
            augment=dict(
                order=("random_affine", "random_erase"),
                random_affine=dict(degrees=20.0, translate=0.1, scale=(0.7, 1.3), shear=20.0),
                random_erase=dict(p=0.5, scale=(0.02, 0.1)),
            ),
            model=dict(
                name="convnet",
                widths=(32, 64),
                kernel_sizes=(5, 3),
                strides=(2, 2),
                norm="batch",
                pooling="flatten",
                features=256,
                activation="relu",
            ),
            head=dict(cosine=False),
            loss=dict(smoothing=0.1),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                schedule="warmup_cosine",
                warmup_steps=50,
                final_scale=0.0,
                weight_decay=1e-4,
                momentum=0.9,
                b2=0.999,
                clip_norm=0.0,
                accumulate=1,
                ema_decay=0.0,
            ),
            dtype="float32",
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
            train=dict(
                batch_size=128, steps=500, log_every=10, eval_every=100, checkpoint_every=250
            ),
            features=dict(batch_size=500, transform="CL2N"),
            episodes=dict(
                count=2000,
                ways=(5,),
                shots=(1, 5),
                queries=15,
            ),
        )
    )
