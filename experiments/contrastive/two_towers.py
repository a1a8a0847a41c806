"""CLIP and SigLIP: drawings and their names, each by its own encoder, agree in one space.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
arXiv:2103.00020; Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
`loss.name` says which loss, `loss.learned` which of its numbers are trained. Names are those that
designers gave their drawings; two drawings of one name in a batch count as each other's negatives,
as in the papers. Classes of unseen drawings are then told without training on classes: by the
vector of the class's name that is nearest.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import STRANGERS
from experiments.common.encoders import build_encoder, image_encoder
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
from rml.ops import topk
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
)  # fmt: skip
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other pairs
CAPTIONS = {
    "loss.png": "Loss against steps.",
    "accuracies.png": "Test accuracy by names of classes, and recall of a drawing's name.",
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
    def test(self) -> tuple[dict[str, np.ndarray], Texts]:
        """The test pairs, and the names of all classes."""
        names = open_images(self.config, "test", labelled=True).class_names
        return self.pairs("test").arrays(), self.encoded(list(names))


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
) -> dict[str, float]:
    """Accuracy by names of classes, and recall of a drawing's own name among all test names."""
    test, classes = drawings.test
    size = config.evaluation.batch_size
    images, texts = (partial(encode, variables) for encode in encoders)
    found = jnp.concatenate(
        [images(test["image"][i : i + size]) for i in range(0, len(test["image"]), size)]
    )
    named = topk(found, texts(classes.tokens, classes.mask), k=1)[1][:, 0]
    # Every name once: a drawing finds its name, not a certain drawing's.
    number, first = np.unique(test["name"], return_index=True)
    names = texts(test["tokens"][first], test["mask"][first])
    nearest = number[np.asarray(topk(found, names, k=min(NEAREST, len(first)))[1])]
    return {
        "zero_shot": float(np.mean(np.asarray(named) == test["label"])),
        f"recall_at_{NEAREST}": float(np.mean((nearest == test["name"][:, None]).any(1))),
    }


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
        evaluate=lambda state: judge(encoders, config, drawings, state.variables),
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
    state = train(config, run, problem, "eval/zero_shot")
    metrics = judge(encoders, config, drawings, state.variables)
    start = initial_state(problem, seed=config.seed).variables
    untrained = judge(encoders, config, drawings, start)
    series = {"trained": list(metrics.values()), "untrained": list(untrained.values())}
    labels = ["class by its name", f"own name among {NEAREST}"]
    figures.bars(run.figure("accuracies.png"), labels, series, ylabel="share of test drawings")
    if found := figures.logged(run.path, {"loss": "train/loss"}):
        figures.curves(run.figure("loss.png"), found, "step", "loss (nats)")
    for key, value in untrained.items():
        metrics |= {f"{key}_untrained": value, f"{key}_over_untrained": metrics[key] - value}
    return metrics
