"""Gaussian processes of wide networks with and without convolutions, on few handwritten digits.

python -m experiments.run --config=configs/kernels/convolution_digits.py --workdir=runs/convolution

With some hundreds of images nearly all digits are classified rightly, by any kernel.

Result: results/dkm, 4 min 31 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    images = parts.images("digits", (8, 8, 1), train="train[:50%]", test="train[50%:]+test")
    return ConfigDict(
        dict(
            experiment="kernels.convolution",
            seed=0,
            precision="highest",
            data=images
            | dict(sizes=(20, 50, 100), validation=300, test_images=1000, shuffled=False),
            model=dict(
                kernel="relu",
                patch=3,
                depths=(1, 2, 3, 4),
                noises=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
            ),
        )
    )
