"""Parts of Hydra's configs."""

from typing import Any


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
