"""Gaussian processes of wide networks with and without convolutions, on few handwritten digits.

python -m experiments.run --config=configs/kernels/convolution_digits.py --workdir=runs/convolution
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    images = parts.images("digits", (8, 8, 1), train="train", test="test")
    return ConfigDict(
        dict(
            experiment="kernels.convolution",
            seed=0,
            precision="highest",
            data=images
            | dict(sizes=(50, 100, 200, 400), validation=300, test_images=350, shuffled=False),
            model=dict(
                kernel="relu",
                patch=3,
                depths=(1, 2, 3, 4),
                noises=(1e-4, 1e-3, 1e-2, 1e-1),
            ),
        )
    )
