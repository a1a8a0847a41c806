"""Parts of the few-shot configs."""

from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import parts


def images(name: str, shape: tuple[int, int, int], **splits: str) -> dict[str, Any]:
    """Images with the split of each part of the classes."""
    usual = dict(base="train", held_out="test", validation="test", novel="all")
    return parts.images(name, shape, **usual | splits)


def drawings(name: str, *, label_key: str) -> dict[str, Any]:
    """Drawings of 32x32 pixels, of which every part of the classes has its own."""
    splits = dict.fromkeys(("base", "held_out", "validation", "novel"), "all")
    return parts.images(name, (32, 32, 3), **splits, label_key=label_key)


def training(*, steps: int, eval_every: int, checkpoint_every: int) -> dict[str, int]:
    """Length and rhythm of base training."""
    return parts.training(
        batch_size=128, steps=steps, log_every=10, eval_every=eval_every,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip


def episodes(**changes: Any) -> dict[str, Any]:
    """Kinds of episodes."""
    return dict(count=2000, ways=(5,), shots=(1, 5), queries=15) | changes


def characters() -> dict[str, Any]:
    """Warps that keep a character the same."""
    return parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0)


def base(**changes: Any) -> ConfigDict:
    """A config of base training; what is not given is for 5,000 digits, classes 0 to 4."""
    given = dict(
        data=images("mnist5k", (28, 28, 1)),
        classes=dict(
            base=(0, 1, 2, 3, 4),
            validation="base",
            novel=(5, 6, 7, 8, 9),
            seed=config_dict.placeholder(int),
        ),
        head=dict(cosine=False),
        loss=dict(smoothing=0.1),
        train=training(steps=500, eval_every=100, checkpoint_every=250),
        evaluation=None,
        features=dict(batch_size=500, transform="CL2N"),
        episodes=episodes(),
    )
    return parts.pretraining("fewshot.base_training", **given | changes)


def digits() -> dict[str, Any]:
    """Parts of base training on digits of 8x8 pixels."""
    return dict(
        data=images("digits", (8, 8, 1)),
        augment=parts.small_warps(),
        model=parts.small_convnet(),
        train=training(steps=300, eval_every=100, checkpoint_every=250),
    )


def glyphs() -> dict[str, Any]:
    """Parts of base training on 400 characters in many fonts."""
    return dict(
        data=images("glyphs", (28, 28, 1), validation="all"),
        classes=dict(base=240, validation=80, novel=80, seed=0),
        augment=characters(),
        train=training(steps=1000, eval_every=250, checkpoint_every=500),
        # A class has 12 images or more: 5 shots and 7 queries.
        episodes=episodes(queries=7),
    )


def methods() -> dict[str, Any]:
    """The methods that are compared, with six options each but SimpleShot, which has no more.

    A tuple holds candidates; the best combination on validation episodes is taken.
    """
    # Without a centre CL2N looks at all queries; base classes have centred the features already.
    nearest = dict(kind=("UN", "L2N"), unit_prototypes=(False, True))
    return dict(
        simple_shot=nearest,
        shifted_simple_shot=nearest,
        linear_head=dict(learning_rate=(1.0, 3.0, 10.0), weight_decay=(1e-3, 1e-2)),
        cosine_head=dict(scale=(2.5, 10.0, 40.0), learning_rate=(0.1, 1.0)),
        soft_kmeans=dict(temperature=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5)),
        hard_kmeans=dict(shift=(True, False), steps=(1, 5, 20)),
        k_modes=dict(temperature=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5)),
        laplacian_shot=dict(laplacian_weight=(0.1, 0.2, 0.3, 0.5, 0.7, 1.0), neighbors=3),
        transductive_clustering=dict(
            temperature=(0.05, 0.1, 0.2), laplacian_weight=(0.05, 0.2), neighbors=3
        ),
        # The public codes take 1,000 steps at a rate of 1e-4.
        tim=dict(steps=50, learning_rate=(3e-3, 1e-2, 3e-2), temperature=(5.0, 15.0)),
        tim_adm=dict(steps=50, temperature=(2.0, 5.0, 15.0), rate=(0.5, 1.0)),
        alpha_tim=dict(
            steps=50, learning_rate=(1e-3, 3e-3, 1e-2), temperature=15.0, alpha=(2.0, 5.0)
        ),
        bd_cspn=dict(scale=(2.0, 5.0, 10.0, 20.0, 30.0, 50.0)),
        pt_map=dict(
            power=config_dict.placeholder(float), regularization=(5.0, 10.0, 20.0), rate=(0.2, 0.4)
        ),
        label_propagation=dict(alpha=(0.1, 0.3, 0.5, 0.7, 0.9, 0.98), neighbors=5),
    )


def compare(**changes: Any) -> ConfigDict:
    """A config that compares methods on the features of base training.

    Args:
      **changes: Changes as `base` takes them. Of `episodes` what is not given is the field's:
        10,000 episodes, options chosen on 500 validation episodes, imbalanced queries too.
    """
    many = dict(count=10_000, validation=500, imbalanced=True, concentration=2.0)
    config = base(**changes | dict(episodes=episodes(**many | changes.get("episodes", {}))))
    config.experiment = "fewshot.compare"
    # "training", "run" with the directory of another run, "pixels", "npz" or "text".
    config.features.update(dict(of="training", run=""))
    compared = methods() | dict(
        # What the search is drawn against; temperatures of 0.05 and 0.1 differ little.
        transductive_clustering=dict(
            temperature=0.1, laplacian_weight=(0.02, 0.1, 0.5), neighbors=(3, 5)
        )
    )
    del compared["shifted_simple_shot"]  # it is measured with the options of SimpleShot
    config.methods, config.compared = compared, tuple(compared)
    config.energy = dict(episodes=100, laplacian_weights=(0.0, 0.05, 0.2))
    return config


def kinds(*each: tuple[int, int, int, int, bool]) -> dict[str, Any]:
    """Kinds of episodes: ways, shots, queries, number of episodes, and whether imbalanced too."""
    names = ("ways", "shots", "queries", "count", "imbalanced")
    return {f"{one[0]}way_{one[1]}shot": dict(zip(names, one, strict=True)) for one in each}


def splits(**changes: Any) -> ConfigDict:
    """A config that compares methods over splits of the classes.

    Args:
      **changes: Changes as `base` takes them. `episodes` has `kinds`; the claims are about that
        named `judged`.
    """
    config = base(**changes)
    config.experiment = "fewshot.splits"
    # "training", or "run" with published weights, "pixels".
    config.features.update(dict(of="training", run=""))
    config.splits = 5
    config.methods = methods()
    config.compared = tuple(config.methods)
    return config
