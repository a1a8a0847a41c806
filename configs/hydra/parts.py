"""Parts of Hydra's configs."""

from typing import Any

from configs.parts import images


def hydra(
    sampling: str = "uniform", *, embed: int = 64, hidden: int = 128, transfer: str = "digits"
) -> dict[str, Any]:
    """The feature filter, the sampling of pairs, the loss, and the data that features move to."""
    return dict(
        transfer=dict(name=transfer, train="train", test="test"),
        filter=dict(
            embed=embed, hidden=hidden, layers=2, combine="gates", gate="sigmoid", temperature=1.0,
            noise=0.5, norm="layer",
        ),
        pairs=dict(sampling=sampling),
        loss=dict(
            temperature=0.1, positives="both", itself=False, views="all", denominator="own",
            renormalize=True, ungated=0.0, reduction="mean", learned=False, penalty=0.1,
            penalized="binary",
        ),
        projections=dict(norm="none", probe=False),
    )  # fmt: skip


def peers() -> dict[str, Any]:
    """Options of the methods that Hydra is compared with."""
    return dict(simclr=dict(temperature=0.2), supcon=dict(temperature=0.1))


def tries(steps: int) -> dict[str, Any]:
    """Options that each compared method chooses from on validation images, four of each.

    Args:
      steps: Training steps of a try.
    """
    rates = ("1e-3", "2e-3", "4e-3", "8e-3")
    faster = "optimizer.learning_rate=4e-3"
    return dict(
        steps=steps,
        simclr=("simclr.temperature=0.1", "simclr.temperature=0.2", "simclr.temperature=0.5",
                f"simclr.temperature=0.2 {faster}"),
        supcon=("supcon.temperature=0.05", "supcon.temperature=0.1", "supcon.temperature=0.2",
                f"supcon.temperature=0.1 {faster}"),
        hydra=("loss.temperature=0.05", "loss.temperature=0.1", "loss.temperature=0.2",
               f"loss.temperature=0.1 {faster}"),
        classifier=tuple(f"optimizer.learning_rate={rate}" for rate in rates),
    )  # fmt: skip


def by_designer(name: str, key: str, **parts: Any) -> dict[str, Any]:
    """Images whose training, validation and test parts are by different designers.

    Args:
      name: Name of the data set.
      key: Feature that is the designer.
      **parts: Designers of `train`, `validation` and `test`; and further keys of the data.
    """
    splits = ("train", "validation", "test")
    domains = {split: parts.pop(split) for split in splits}
    return images(
        name, (32, 32, 3), **dict.fromkeys(splits, "all"), domain_key=key, domains=domains, **parts
    )
