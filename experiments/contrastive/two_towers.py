"""CLIP and SigLIP: drawings and their names, each by its own encoder, agree in one space.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
arXiv:2103.00020; Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
`loss.name` says which loss, `loss.learned` which of its numbers are trained. Names are those that
designers gave their drawings; two drawings of one name in a batch count as each other's negatives,
as in the papers. The class of an unseen drawing is then told by the nearest vector of the classes'
names. A class's name is a word of its drawings' names, and names of training drawings contain it:
drawings are unseen, the words of classes are not.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import STRANGERS
from experiments.common.encoders import OfModel, build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import first_state, train_on_mesh
from experiments.common.selection import Selection
from experiments.contrastive.named_drawings import (
    NEAREST,
    Drawings,
    judge,
    judge_words,
    shares,
)
from experiments.ranges import Range
from rml import data, models
from rml.contrastive import TwoTowers
from rml.data import augment
from rml.embedding import batch_devices, on_mesh
from rml.embedding import compiled as compiled_on
from rml.encoder import ImageEmbedder
from rml.errors import UserError, unknown
from rml.losses import clamp_log_scale, clip_loss, siglip_loss
from rml.models.text_encoder import TextEncoder
from rml.ops import t_interval
from rml.training import (
    Claim,
    Loss,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
    make_mesh,
    over_batch,
)
from rml.training.mesh import batch_sharding, use_mesh

SOURCE = "CLIP (arXiv:2103.00020), Section 3.1; data and margins are this repository's"
CLAIMS = (
    Claim("A test drawing finds a drawing's name like its own among the 10 nearest names more "
          "often than by the words of training drawings that look alike",
          "recall_at_10_over_words", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null_run="strangers",
          says="{recall_at_10:.1%} of drawings find a name like their own among the 10 nearest, "
          "{recall_at_10_words:.1%} by words of training drawings that look alike"),
    Claim("Classes of test drawings are told by their names at least as often as by the words of "
          "training drawings that look alike", "zero_shot_over_words", ">=", 0.0, SOURCE,
          stated="2026-11-29", null_run="strangers",
          says="{zero_shot:.1%} of drawings are told by the names of classes, "
          "{zero_shot_words:.1%} by those words"),
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


def build_model(config: Any) -> TwoTowers:
    """The two encoders of a config, of one width."""
    bert = models.Bert(
        vocabulary=config.tokens.vocabulary, positions=config.tokens.max_length,
        width=config.head.features, dtype=jnp.dtype(config.dtype), **config.text,
    )  # fmt: skip
    return TwoTowers(
        build_encoder(config), TextEncoder(bert), config.loss.log_scale, config.loss.bias
    )


class ImageVectors(OfModel):
    """The vectors of images, in the space that both encoders share."""

    def __call__(self, variables: Any, pixels: Any) -> Any:
        """Vectors of a batch of images."""
        return self.model.apply(variables, augment.to_float(pixels), method="embed_images")


class TextVectors(OfModel):
    """The vectors of texts, in the same space."""

    def __call__(self, variables: Any, tokens: Any, mask: Any) -> Any:
        """Vectors of a batch of texts."""
        return self.model.apply(variables, tokens, mask, method="embed_texts")


def compiled(model: TwoTowers, shape: Any = None) -> tuple[Any, Any]:
    """Functions of variables and images, and of variables, tokens and mask, to vectors.

    Args:
      model: The two encoders.
      shape: Shape of a mesh, as `config.mesh`, over whose batch axes rows are split and on which
        variables stay as they lie; one of one device of each process if not given.
    """

    def shared_out(function: Any) -> Any:
        def vectors(variables: Any, *inputs: Any) -> Any:
            devices = jax.local_devices()[:1] if shape is None else None
            mesh = make_mesh(shape or {}, devices)
            rows, count = batch_sharding(mesh), len(inputs[0])
            # Filled up with the last one, so that all devices have equally many.
            taken = np.minimum(np.arange(count + -count % batch_devices(rows)), count - 1)
            with use_mesh(mesh):
                found = compiled_on(function, mesh)(
                    on_mesh(variables, mesh), *jax.device_put([own[taken] for own in inputs], rows)
                )
            return jnp.asarray(found.addressable_data(0))[:count]

        return vectors

    return shared_out(ImageVectors(model)), shared_out(TextVectors(model))


def learnable(learned: Sequence[str], *numbers: Any) -> list[Any]:
    """The numbers of `LEARNED`, in its order; those that `learned` does not name are constants."""
    named = zip(LEARNED, numbers, strict=True)
    return [own if name in learned else jax.lax.stop_gradient(own) for name, own in named]


def bounded(task: Task) -> Task:
    """Holds the parameter `log_scale` to CLIP's bound, at first and after each step."""

    def held(state: TrainState) -> TrainState:
        log_scale = clamp_log_scale(state.params["log_scale"])
        return state.replace(params={**state.params, "log_scale": log_scale})

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state, metrics = task.step(state, batch)
        return held(state), metrics

    return replace(task, init=lambda key: held(task.init(key)), step=step)


def task(config: Any) -> Task:
    """The training problem of a config.

    Raises:
      UserError: An unknown loss, an unknown number that it learns, or a bias that it ignores.
    """
    model, pipeline, drawings = build_model(config), augmentation(config), Drawings(config)
    encoders = compiled(model, config.mesh)
    size, width = config.train.batch_size, config.tokens.max_length
    shape, name = tuple(config.data.image_shape), config.loss.name
    if name not in LOSSES:
        raise unknown("loss.name", name, LOSSES)
    if name == "clip" and config.loss.bias:
        raise UserError(
            f"loss.bias is {config.loss.bias} with loss.name 'clip', whose softmax no bias "
            "changes; expected 0.0"
        )
    for number in config.loss.learned:
        if number not in LEARNED:
            raise unknown("loss.learned", number, LEARNED)

    def init(key: Any) -> Any:
        row = jnp.zeros((2, width), jnp.int32)
        return model.init(key, jnp.zeros((2, *shape)), row, jnp.ones((2, width), bool), train=True)

    def contrast(images: Any, texts: Any, log_scale: Any, bias: Any) -> Any:
        if name == "siglip":
            return over_batch(partial(siglip_loss, log_scale=log_scale, bias=bias))(images, texts)
        return over_batch(partial(clip_loss, log_scale=log_scale))(images, texts)

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

    made = gradient_task(
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
    return bounded(made) if name == "clip" else made


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_model(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges both encoders on test drawings, draws."""
    encoders = compiled(build_model(config), config.mesh)
    problem, drawings = task(config), Drawings(config)
    drawings.check()
    words = judge_words(config, drawings)  # what it lacks is said before the training
    state = train_on_mesh(config, run, problem, "eval/zero_shot")
    start = first_state(config, problem).variables
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
