"""Logits that fall with distance in small models of docstrings and code: 256 tokens, read at 2,048.

python -m experiments.run --config=configs/attention/harmonic_bias.py --workdir=runs/harmonic_bias

Needs nothing that is not installed. All models train with one learning rate, and slopes have one
strength; neither was chosen by a score.

Result: results/generative_maths, 11 min 25 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            **parts.small_lm(
                "attention.harmonic_bias",
                width=64,
                mlp=192,
                learning_rate=4e-3,
                warmup_steps=30,
                steps=300,
            ),
            long=dict(
                windows=32,  # of eight training lengths
                strength=1.0,  # factor of the slopes of both forms
            ),
        )
    )
