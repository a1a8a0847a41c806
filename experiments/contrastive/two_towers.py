"""CLIP and SigLIP: drawings and their names, each by its own encoder, agree in one space.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
arXiv:2103.00020; Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
`loss.name` says which loss, `loss.learned` which of its numbers are trained. Names are those that
designers gave their drawings; two drawings of one name in a batch count as each other's negatives,
as in the papers. Classes of unseen drawings are then told without training on classes: by the
vector of the class's name that is nearest.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from experiments.common import figures
from experiments.common.claims import STRANGERS
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.evaluators import pixels
from experiments.common.images import augmentation, open_images
from experiments.common.pretraining import train
from experiments.common.selection import Selection
from experiments.ranges import Range
from rml import data, models
from rml.contrastive import TwoTowers
from rml.data import augment, tokens
from rml.encoder import ImageEmbedder
from rml.errors import unknown
from rml.losses import clamp_log_scale, clip_loss, siglip_loss
from rml.models.text_encoder import TextEncoder
from rml.ops import t_interval, topk
from rml.retrieval import bm25_search
from rml.training import (
    Claim,
    Loss,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
    initial_state,
    over_batch,
)

SOURCE = "CLIP (arXiv:2103.00020), Section 3.1; data and margins are this repository's"
CLAIMS = (
    Claim("Classes of test drawings are told by their names, untrained on classes: top-1 accuracy "
          "of at least 10%", "zero_shot", ">=", 0.10, SOURCE,
          stated="2026-11-26", null_run="strangers"),
    Claim("A test drawing finds a drawing's name like its own among the 10 nearest names: at least "
          "10 points above untrained encoders", "recall_at_10_over_untrained", ">=", 0.10, SOURCE,
          stated="2026-11-26", null_run="strangers"),
    Claim("A test drawing finds a drawing's name like its own among the 10 nearest names: at least "
          "5 points above the words of training drawings that look alike",
          "recall_at_10_over_words", ">=", 0.05, SOURCE, stated="2026-11-29",
          null_run="strangers"),
    Claim("Classes of test drawings are told by their names at least as often as by the words of "
          "training drawings that look alike", "zero_shot_over_words", ">=", 0.0, SOURCE,
          stated="2026-11-29", null_run="strangers"),
)  # fmt: skip
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other pairs
CAPTIONS = {
    "loss.png": "Loss against steps.",
    "accuracies.png": "Test accuracy by names of classes, and recall of a drawing's name, with 95% "
    "intervals over test drawings. Words: BM25 by the names of the training drawings whose pixels "
    "are nearest.",
}
PICTURE = "accuracies.png"
SELECTION = Selection("eval/zero_shot", "test")
LOSSES = ("clip", "siglip")
LEARNED = ("log_scale", "bias")
NEAREST = 10


class Texts(NamedTuple):
    """Texts as tokens, and the number of each among the texts that differ."""

    tokens: np.ndarray
    mask: np.ndarray
    number: np.ndarray


class Drawings:
    """Drawings of a config with their names; nothing is opened before it is needed."""

    def __init__(self, config: Any):
        """Remembers the config, of which `data` and `tokens` are read."""
        self.config = config

    def names(self, part: str) -> list[str]:
        """The name of each drawing of a split."""
        options = self.config.data
        read = data.load_text(
            options.name, options[part], text_key=options.text, data_dir=options.data_dir
        )
        return [name.replace("-", " ") for name in read.texts]

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer learned on the names of the training drawings."""
        return tokens.train_tokenizer(self.names("train"), vocabulary=self.config.tokens.vocabulary)

    def encoded(self, texts: Any) -> Texts:
        """Texts as tokens of one width."""
        width = self.config.tokens.max_length
        rows = tokens.encode(self.tokenizer, texts, max_length=width)
        return Texts(*tokens.pad(rows, width=width), np.unique(texts, return_inverse=True)[1])

    def pairs(self, part: str) -> data.Arrays:
        """Drawings and the tokens of their names."""
        source, texts = open_images(self.config, part, labelled=True), self.names(part)
        rows = self.encoded(texts)
        arrays = {"tokens": rows.tokens, "mask": rows.mask, "name": rows.number.astype(np.int32)}
        return data.Arrays(source.arrays() | arrays, name=source.name, split=source.split)

    def check(self) -> None:
        """Opens all that is measured on: what cannot be read fails before the training."""
        assert len(self.test[0]["image"])

    @cached_property
    def classes(self) -> list[str]:
        """The names of all classes."""
        return list(open_images(self.config, "test", labelled=True).class_names)

    @cached_property
    def test(self) -> tuple[dict[str, np.ndarray], Texts]:
        """The test pairs, and the names of all classes."""
        return self.pairs("test").arrays(), self.encoded(self.classes)


def build_model(config: Any) -> TwoTowers:
    """The two encoders of a config, of one width."""
    bert = models.Bert(
        vocabulary=config.tokens.vocabulary, positions=config.tokens.max_length,
        width=config.head.features, dtype=jnp.dtype(config.dtype), **config.text,
    )  # fmt: skip
    return TwoTowers(
        build_encoder(config), TextEncoder(bert), config.loss.log_scale, config.loss.bias
    )


def compiled(model: TwoTowers) -> tuple[Any, Any]:
    """Functions of variables and images, and of variables, tokens and mask, to vectors."""

    def images(variables: Any, pixels: Any) -> Any:
        return model.apply(variables, augment.to_float(pixels), method="embed_images")

    return jax.jit(images), jax.jit(partial(model.apply, method="embed_texts"))


def judge(
    encoders: tuple[Any, Any], config: Any, drawings: Drawings, variables: Any
) -> dict[str, np.ndarray]:
    """Whether each test drawing is of the class whose name is nearest, and has a near name.

    "zero_shot" is the former; of the latter, "recall_at_10", a drawing's own name is to be among
    the nearest of all test names.
    """
    test, classes = drawings.test
    size = config.evaluation.batch_size
    images, texts = (partial(encode, variables) for encode in encoders)
    found = jnp.concatenate(
        [images(test["image"][i : i + size]) for i in range(0, len(test["image"]), size)]
    )
    named = topk(found, texts(classes.tokens, classes.mask), k=1)[1]
    # Every name once, in the order of their numbers: a drawing finds its name, not a drawing.
    first = np.unique(test["name"], return_index=True)[1]
    names = texts(test["tokens"][first], test["mask"][first])
    return right(test, named, topk(found, names, k=min(NEAREST, len(first)))[1])


def right(
    test: Mapping[str, np.ndarray], named: ArrayLike, nearest: ArrayLike
) -> dict[str, np.ndarray]:
    """What `judge` says of test drawings, from classes `[n, 1]` and numbers of names `[n, k]`."""
    label, name = test["label"][:, None], test["name"][:, None]
    return {
        "zero_shot": (np.asarray(named) == label).any(1),
        f"recall_at_{NEAREST}": (np.asarray(nearest) == name).any(1),
    }


def shares(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of test drawings of which each is true."""
    return {key: float(np.mean(own)) for key, own in found.items()}


def lent(images: ArrayLike, names: Sequence[str], seen: ArrayLike, *, k: int) -> list[str]:
    """For each image the words of its nearest seen images by pixels, nearest first.

    Args:
      images: Images, `[m, h, w, c]`.
      names: Names of the seen images, n of them.
      seen: Seen images, `[n, h, w, c]`.
      k: How many lend their names.
    """
    nearest = topk(pixels(images), pixels(seen), k=min(k, len(names)), metric="euclidean")[1]
    return [" ".join(names[at] for at in row) for row in np.asarray(nearest)]


def judge_words(config: Any, drawings: Drawings) -> dict[str, np.ndarray]:
    """What `judge` says of BM25 by the words that training drawings lend: nothing is trained."""
    test, names = drawings.test[0], np.array(drawings.names("test"))
    seen = open_images(config, "train").arrays()["image"]
    words = lent(test["image"], drawings.names("train"), seen, k=NEAREST)
    first = np.unique(test["name"], return_index=True)[1]
    _, named = bm25_search(drawings.classes, words, k=1)
    _, nearest = bm25_search(list(names[first]), words, k=min(NEAREST, len(first)))
    return right(test, named, nearest)


def learnable(learned: Sequence[str], *numbers: Any) -> list[Any]:
    """The numbers of `LEARNED`, in its order; those that `learned` does not name are constants."""
    named = zip(LEARNED, numbers, strict=True)
    return [own if name in learned else jax.lax.stop_gradient(own) for name, own in named]


def task(config: Any) -> Task:
    """The training problem of a config.

    Raises:
      UserError: An unknown loss, or an unknown number that it learns.
    """
    model, pipeline, drawings = build_model(config), augmentation(config), Drawings(config)
    encoders = compiled(model)
    size, width = config.train.batch_size, config.tokens.max_length
    shape, name = tuple(config.data.image_shape), config.loss.name
    if name not in LOSSES:
        raise unknown("loss.name", name, LOSSES)
    for number in config.loss.learned:
        if number not in LEARNED:
            raise unknown("loss.learned", number, LEARNED)

    def init(key: Any) -> Any:
        row = jnp.zeros((2, width), jnp.int32)
        return model.init(key, jnp.zeros((2, *shape)), row, jnp.ones((2, width), bool), train=True)

    def contrast(images: Any, texts: Any, log_scale: Any, bias: Any) -> Any:
        if name == "siglip":
            return over_batch(partial(siglip_loss, log_scale=log_scale, bias=bias))(images, texts)
        # Held to the paper's bound, with its gradient, so that an overshoot comes back.
        held = jax.lax.stop_gradient(clamp_log_scale(log_scale) - log_scale)
        return over_batch(partial(clip_loss, log_scale=log_scale + held))(images, texts)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = pipeline(state.step_key, augment.to_float(batch["image"]))
        (*vectors, log_scale, bias), changed = model.apply(
            state.training_variables(params), images, batch["tokens"], batch["mask"], train=True,
            mutable=list(state.model_state),
        )  # fmt: skip
        log_scale, bias = learnable(config.loss.learned, log_scale, bias)
        metrics = {"log_scale": log_scale, "bias": bias}
        value = contrast(vectors[0], vectors[1], log_scale, bias)
        return Loss(value, metrics, model_state=changed)

    def batches(part: int = 0, parts: int = 1) -> grain.IterDataset:
        pairs = drawings.pairs("train")
        return data.batches(pairs, batch_size=size, seed=config.seed, part=part, parts=parts)

    return gradient_task(
        init_variables=init,
        loss=loss,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=batches,
        evaluate=lambda state: shares(judge(encoders, config, drawings, state.variables)),
        batch_spec={
            "image": jax.ShapeDtypeStruct((size, *shape), jnp.dtype(config.data.image_dtype)),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
            "name": jax.ShapeDtypeStruct((size,), jnp.int32),
            "tokens": jax.ShapeDtypeStruct((size, width), jnp.int32),
            "mask": jax.ShapeDtypeStruct((size, width), jnp.bool_),
        },
    )


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_model(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges both encoders on test drawings, draws."""
    encoders, problem, drawings = compiled(build_model(config)), task(config), Drawings(config)
    drawings.check()
    words = judge_words(config, drawings)  # what it lacks is said before the training
    state = train(config, run, problem, "eval/zero_shot")
    start = initial_state(problem, seed=config.seed).variables
    found = {
        "trained": judge(encoders, config, drawings, state.variables),
        "untrained": judge(encoders, config, drawings, start),
        "words": words,
    }
    ends = {
        name: np.array([t_interval(hits.astype(float)) for hits in own.values()])
        for name, own in found.items()
    }
    figures.bars(
        run.figure("accuracies.png"), ["class by its name", f"own name among {NEAREST}"],
        {name: own[:, 0] for name, own in ends.items()},
        {name: own[:, 2] - own[:, 0] for name, own in ends.items()},
        ylabel="share of test drawings",
    )  # fmt: skip
    if logged := figures.logged(run.path, {"loss": "train/loss"}):
        figures.curves(run.figure("loss.png"), logged, "step", "loss (nats)")
    metrics = shares(found["trained"])
    for other in ("untrained", "words"):
        for key, value in shares(found[other]).items():
            metrics |= {f"{key}_{other}": value, f"{key}_over_{other}": metrics[key] - value}
    return metrics
