"""A sparse deep kernel machine beside the sparse Gaussian process of its kernel, 5,000 digits.

python -m experiments.run --config=configs/kernels/classification_mnist5k.py --workdir=runs/dkm

ν and learning rate, and as many learning rates of the Gaussian process, are chosen on the last
quarter of the training images, and replace `model.width` and `optimizer.learning_rate`. The other
settings were tried there, once.

Result: results/dkm, 8 min 3 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.classification",
            seed=0,
            precision="highest",
            data=parts.images("mnist5k", (28, 28, 1), train="train", test="test", total=4000),
            model=dict(
                kernel="squared_exponential",
                depth=2,
                classes=10,
                inducing=100,
                width=10.0,
                widths=(3.0, 10.0, 30.0),
                samples=8,
                normalization="none",
                jitter=1e-4,
            ),
            optimizer=parts.optimizer(learning_rate=1e-2, warmup_steps=50, weight_decay=0.0),
            tries=dict(
                rates=(1e-2, 3e-2),
                sparse_gp_rates=(5e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1),
                data=dict(train="train[:75%]", test="train[75%:]", total=3000),
            ),
            mesh=parts.mesh(),
            train=dict(batch_size=250, steps=1000, log_every=25, checkpoint_every=500),
            evaluation=dict(batch_size=500),
        )
    )
