"""A sparse deep kernel machine beside the sparse Gaussian process of its kernel, on clothes.

python -m experiments.run --config=configs/kernels/classification_fashion.py --workdir=runs/fashion

Fashion-MNIST (`make assets`), 4,000 training images. Settings and tries are those of mnist5k.

Result: results/dkm, 4 min 59 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict

from configs.kernels import classification_mnist5k


def get_config() -> ConfigDict:
    config = classification_mnist5k.get_config()
    config.data.update(dict(name="fashion_mnist", train="train[:4000]", test="test[:2000]"))
    config.tries.data.update(dict(train="train[:3000]", test="train[3000:4000]"))
    return config
