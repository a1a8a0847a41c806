"""Losses of metric learning, value and gradient, beside pytorch-metric-learning and dense PyTorch.

python -m benchmarks.metric [--json] [--quick]

Cosines of 1,024 rows of 256 dimensions to 1,000, 10,000 and, without --quick, 100,000 class
vectors: normalised softmax, CosFace and ArcFace, with the scales and margins that are the peer's
defaults. Semi-hard and all triplets, contrastive pairs and the multi-similarity loss, of 16 classes
with 16 rows each and, without --quick, 64 classes; float32, two threads. Times are the least of
interleaved repeats, after each peer was found to have our value and gradients, of semi-hard
triplets our value.

The floor is the three matrix products of value and gradient alone; distances of rows to one
another, whose matrix is symmetric, may do with less. Extra peak memory is that of a fresh process,
beside the matrix of logits alone and beside the peers. All triplets of 1,024 rows are too many for
dense PyTorch. pytorch-metric-learning's contrastive loss has its hinges squared, as ours are; of
semi-hard mining it has none that takes a negative for each pair.
"""

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    jax_step,
    print_extra_memory,
    print_table,
    three_products,
    torch_step,
)

THREADS = 2
DIMENSION = 256
ROWS = 1024
MARGINS = {"none": (20.0, 0.0), "cosine": (64.0, 0.35), "angle": (64.0, math.radians(28.6))}
"""Scale and margin of each kind."""
TRIPLET_MARGIN, PAIR_MARGIN = 0.2, 1.0
SIMILARITIES = 2.0, 50.0, 0.5  # sharpness of positives and of negatives, margin
DENSE_TRIPLETS = 256  # the largest batch of which all triplets fit a small machine at once
VALUES_AGREE, GRADIENTS_AGREE = 1e-4, 1e-3
"""Largest relative differences of values and of gradients, these of their lengths."""
NAMES = {
    "none": "normalised softmax",
    "cosine": "CosFace",
    "angle": "ArcFace",
    "all": "triplets, all",
    "semi-hard": "triplets, semi-hard",
    "pairs": "contrastive pairs",
    "similarities": "multi-similarity",
}

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))


def _inputs(rows: int, classes: int) -> tuple[Any, Any, Any]:
    """Rows, class vectors, and labels: equally many of each class if that can be, or random."""
    import numpy as np

    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, DIMENSION), np.float32)
    vectors = rng.standard_normal((classes, DIMENSION), np.float32)
    few = np.repeat(np.arange(classes), rows // classes)
    return features, vectors, few if len(few) == rows else rng.integers(0, classes, rows)


def _unit_rows(rows: int, classes: int) -> tuple[Any, Any]:
    import numpy as np

    features, _, labels = _inputs(rows, classes)
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


def ours(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """Cross-entropy among class vectors of this library."""
    from rml.losses import normalized_softmax

    *arrays, labels = _inputs(rows, classes)
    scale, margin = MARGINS[kind]

    def loss(features: Any, vectors: Any) -> Any:
        return normalized_softmax(
            features, labels, vectors, scale=scale, margin=margin, margin_kind=kind
        )

    return jax_step(loss, arrays)


def dense_torch(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """Cross-entropy among class vectors as one writes it in PyTorch."""
    import torch

    *arrays, numbers = _inputs(rows, classes)
    labels = torch.tensor(numbers)
    scale, margin = MARGINS[kind]
    functional = torch.nn.functional

    def turned(cosine: Any) -> Any:
        angle = torch.acos(cosine.clamp(-1, 1))
        beyond = cosine - margin * math.sin(margin)
        return torch.where(angle <= math.pi - margin, torch.cos(angle + margin), beyond)

    def loss(features: Any, vectors: Any) -> Any:
        cosine = functional.normalize(features) @ functional.normalize(vectors).T
        if kind != "none":
            own = cosine.gather(1, labels[:, None])
            own = own - margin if kind == "cosine" else turned(own)
            cosine = cosine.scatter(1, labels[:, None], own)
        return functional.cross_entropy(scale * cosine, labels)

    return torch_step(loss, arrays, THREADS)


def metric_learning(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """Cross-entropy among class vectors of pytorch-metric-learning, which has them in columns."""
    import torch
    from pytorch_metric_learning import losses

    features, vectors, numbers = _inputs(rows, classes)
    scale, margin = MARGINS[kind]
    if kind == "none":
        loss = losses.NormalizedSoftmaxLoss(classes, DIMENSION, temperature=1 / scale)
    elif kind == "cosine":
        loss = losses.CosFaceLoss(classes, DIMENSION, margin=margin, scale=scale)
    else:
        loss = losses.ArcFaceLoss(classes, DIMENSION, margin=math.degrees(margin), scale=scale)
    labels, columns = torch.tensor(numbers), loss.W
    columns.data = torch.tensor(vectors).T.contiguous()
    step = torch_step(lambda features: loss(features, labels), [features], THREADS)

    def both() -> tuple[Any, tuple[Any, Any]]:
        columns.grad = None
        value, (slope,) = step()
        return value, (slope, columns.grad.T)

    return both


def ours_of_rows(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """Triplets or pairs of this library."""
    from rml.losses import contrastive_pairs, multi_similarity, triplet_loss

    features, labels = _unit_rows(rows, classes)
    if kind == "similarities":
        beta, gamma, margin = SIMILARITIES
        similar = partial(multi_similarity, beta=beta, gamma=gamma, margin=margin)
        return jax_step(lambda x: similar(x, labels), [features])
    if kind == "pairs":
        return jax_step(lambda x: contrastive_pairs(x, labels, margin=PAIR_MARGIN), [features])
    mined = partial(triplet_loss, margin=TRIPLET_MARGIN, mining=kind)
    return jax_step(lambda x: mined(x, labels), [features])


def dense_torch_of_rows(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """Triplets or pairs as one writes them in PyTorch; semi-hard negatives are found by sorting."""
    import torch

    features, numbers = _unit_rows(rows, classes)
    labels = torch.tensor(numbers)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(rows, dtype=torch.bool)
    fewest = int((~same).sum(1).min())  # classes are alike in size

    def similarities(features: Any) -> Any:
        beta, gamma, margin = SIMILARITIES
        unit = torch.nn.functional.normalize(features)
        s = unit @ unit.T - margin
        total: Any = 0.0
        for kept, slope in ((positive, -beta), (~same, gamma)):
            powers = torch.exp((slope * s).masked_fill(~kept, -math.inf))
            total = total + torch.log1p(powers.sum(1)) / abs(slope)
        return total.mean()

    def loss(features: Any) -> Any:
        if kind == "similarities":
            return similarities(features)
        d = torch.cdist(features, features)
        if kind == "pairs":
            apart = torch.relu(PAIR_MARGIN - d[~same])
            return (d[positive].square().mean() + apart.square().mean()) / 2
        if kind == "semi-hard":
            negatives = d.masked_fill(same, math.inf).sort(1).values
            first = torch.searchsorted(negatives.detach(), d.detach(), right=True)
            chosen = negatives.gather(1, first.clamp(max=fewest - 1))
            return torch.relu((d - chosen)[positive] + TRIPLET_MARGIN).mean()
        triplets = positive[:, :, None] & ~same[:, None]
        return torch.relu((d[:, :, None] - d[:, None])[triplets] + TRIPLET_MARGIN).mean()

    return torch_step(loss, [features], THREADS)


def metric_learning_of_rows(kind: str, rows: int, classes: int) -> Callable[[], Any]:
    """All triplets, or pairs whose hinges are squared, of pytorch-metric-learning."""
    import torch
    from pytorch_metric_learning import distances, losses, reducers

    class Squared(losses.ContrastiveLoss):
        def get_per_pair_loss(self, pair_dists: Any, pos_or_neg: str) -> Any:
            return super().get_per_pair_loss(pair_dists, pos_or_neg).square() / 2

    features, numbers = _unit_rows(rows, classes)
    labels = torch.tensor(numbers)
    how = dict(
        distance=distances.LpDistance(normalize_embeddings=False), reducer=reducers.MeanReducer()
    )
    if kind == "similarities":
        alpha, beta, base = SIMILARITIES
        loss = losses.MultiSimilarityLoss(alpha, beta, base, reducer=reducers.MeanReducer())
    elif kind == "pairs":
        loss = Squared(neg_margin=PAIR_MARGIN, **how)
    else:
        loss = losses.TripletMarginLoss(margin=TRIPLET_MARGIN, **how)
    return torch_step(lambda x: loss(x, labels), [features], THREADS)


@cache
def floor(rows: int, classes: int) -> Callable[[], Any]:
    """The three products of logits and both gradients."""
    return three_products(*_inputs(rows, classes)[:2])


@cache
def floor_of_rows(rows: int, classes: int) -> Callable[[], Any]:
    """The three products of a batch with itself."""
    features, _ = _unit_rows(rows, classes)
    return three_products(features, features)


OF_VECTORS = (ours, dense_torch, metric_learning)
OF_ROWS = (ours_of_rows, dense_torch_of_rows, metric_learning_of_rows)
PAIRINGS = ("all", "semi-hard", "pairs", "similarities")
CASES: dict[str, Callable[[int, int], Callable[[], Any]]] = {
    "floor": floor,
    "floor_of_rows": floor_of_rows,
    **{f"{case.__name__} {kind}": partial(case, kind) for case in OF_VECTORS for kind in MARGINS},
    **{f"{case.__name__} {kind}": partial(case, kind) for case in OF_ROWS for kind in PAIRINGS},
}


def require_agreement(case: str, steps: Mapping[str, Callable[[], Any]]) -> None:
    """Raises `RuntimeError` unless all losses have the value and gradients of the first.

    Of semi-hard triplets only the value is compared. Where a negative is as far as the positive, up
    to rounding, ours takes the next one: the hinge is nearly the same, its gradient another.
    """
    import numpy as np

    (own, *_), found = steps, {name: step() for name, step in steps.items()}
    value, slopes = found.pop(own)
    slopes = () if "semi-hard" in case else slopes
    for name, (other, others) in found.items():
        difference = abs(float(other) - float(value)) / abs(float(value))
        if not difference <= VALUES_AGREE:
            raise RuntimeError(f"{case}: {name} is {float(other)}, {own} is {float(value)}")
        for slope, expected in zip(others, slopes, strict=bool(slopes)):
            a, b = np.asarray(slope), np.asarray(expected)
            difference = float(np.linalg.norm(a - b) / np.linalg.norm(b))
            if not difference <= GRADIENTS_AGREE:
                raise RuntimeError(f"{case}: gradients of {name}, {own} differ by {difference:.2g}")


def compare(
    kind: str, rows: int, classes: int, peers: dict[str, str], repeats: int, memory: bool = False
) -> list[Row]:
    """Times, and optionally memory, of one loss beside its peers at one size.

    Args:
      kind: Kind of margin, or of triplets or pairs.
      rows: Rows of the batch.
      classes: Classes, of which `rows` are as many each where rows are compared.
      peers: Name of each peer by its case, without the kind.
      repeats: Repeats of each, of which the least time counts.
      memory: Whether each is measured in a process of its own too.
    """
    import jax

    own = "ours" if kind in MARGINS else "ours_of_rows"
    cases = {name: name if "floor" in name else f"{name} {kind}" for name in (own, *peers)}
    case = f"{NAMES[kind]}, {rows:,} rows, {classes:,} classes"
    print(f"measuring {case}", file=sys.stderr, flush=True)
    steps = {name: CASES[found](rows, classes) for name, found in cases.items()}
    require_agreement(case, {name: step for name, step in steps.items() if "floor" not in name})
    seconds = best_of_each(steps, repeats)
    del steps
    jax.clear_caches()
    found = [
        Row(case, "ms", 1e3 * seconds[own], label, 1e3 * seconds[peer])
        for peer, label in peers.items()
    ]
    if memory:
        used = {
            name: in_fresh_process("benchmarks.metric", found, rows, classes)
            for name, found in cases.items()
            if "floor" not in name
        }
        logits = 4 * rows * classes / 2**20
        found.append(Row(case, "extra peak MB", used[own], "logits alone", logits))
        found += [
            Row(case, "extra peak MB", used[own], label, used[peer])
            for peer, label in peers.items()
            if peer in used
        ]
    return found


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="few classes and rows only")
    parser.add_argument(
        "--memory", nargs=3, metavar=("CASE", "ROWS", "CLASSES"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(argv)
    if args.memory:
        name, rows, classes = args.memory[0], *map(int, args.memory[1:])
        print_extra_memory(partial(CASES[name], 64, 16), partial(CASES[name], rows, classes))
        return

    import jax
    import pytorch_metric_learning
    import torch

    versions = {
        "metric_learning": f"pytorch-metric-learning {pytorch_metric_learning.__version__}",
        "dense_torch": f"torch {torch.__version__}",
        "floor": "floor: three products",
    }
    found = []
    for classes, most in ((1000, 20), (10_000, 4), (100_000, 2))[: 2 if args.quick else 3]:
        repeats = most // 2 if args.quick else most
        for kind in MARGINS:
            found += compare(kind, ROWS, classes, versions, repeats, memory=classes == 100_000)
    for classes, examples in ((16, 16), (64, 16))[: 1 if args.quick else 2]:
        rows = classes * examples
        for kind in PAIRINGS:
            peers = {f"{name}_of_rows": label for name, label in versions.items()}
            if kind == "semi-hard":
                del peers["metric_learning_of_rows"]
            if kind == "all" and rows > DENSE_TRIPLETS:
                del peers["dense_torch_of_rows"]
            found += compare(kind, rows, classes, peers, 2 if kind == "all" else 10)
    print_table(
        f"Losses of metric learning, value and gradient, float32, d = {DIMENSION}: "
        f"jax {jax.__version__}, torch {torch.__version__} with {THREADS} threads, "
        f"{platform.machine()}",
        found,
    )
    finish("metric", found, args.json)


if __name__ == "__main__":
    main()
