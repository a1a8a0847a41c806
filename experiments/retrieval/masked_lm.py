"""A masked language model: a text encoder learns to predict tokens that it does not see.

Devlin et al., BERT, arXiv:1810.04805, Section 3.1. Of every piece of a document 15 in 100 tokens
are to be predicted; most of them are hidden. Contriever and fine-tuning start from such an encoder
(Izacard et al., arXiv:2112.09118, Section 4.1) by `model.name=run`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.pretraining import first_state
from experiments.common.selection import NDCG
from experiments.common.texts import TextModel, text_encoder
from experiments.retrieval import common
from rml.contrastive import Masked, Texts, mask_tokens, with_ends
from rml.data import load_documents
from rml.data.collections import RELATED
from rml.data.pieces import piece_spec, pieces
from rml.errors import UserError
from rml.losses import masked_lm
from rml.models import MaskedLMHead
from rml.ops import t_interval
from rml.retrieval import TextEmbedder
from rml.training import (
    Claim,
    Loss,
    RunDirectory,
    Task,
    TrainState,
    gradient_task,
)

SOURCE = "BERT (arXiv:1810.04805), Section 3.1; data and margins are this repository's"
CLAIMS = (
    Claim("Hidden tokens of unseen modules cost less than by their frequencies",
          "nats_under_frequencies", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="untrained_nats_under_frequencies",
          says="A hidden token of unseen modules costs {nats_trained:.2f} nats, by the tokens' "
          "frequencies {nats_by_frequency:.2f}"),
)  # fmt: skip
CAPTIONS = {
    "loss.png": "Cross-entropy of hidden tokens against steps.",
    "nats.png": "Cross-entropy of hidden tokens of unseen documents, mean and 95% interval.",
}
PICTURE = "nats.png"
SELECTION = NDCG
HELD_OUT = 1000
"""The most pieces of unseen documents that hidden tokens are predicted in."""


class Prediction(NamedTuple):
    """What a model makes of the hidden tokens of n texts.

    Attributes:
      nats: Cross-entropy of each text's hidden tokens.
      right: Share of them that have the highest logit.
      hidden: The texts with their hidden tokens.
    """

    nats: jax.Array
    right: jax.Array
    hidden: Masked


def task(config: Any, model: TextModel | None = None) -> Task:
    """The training problem of a config, its model given where it has been prepared."""
    model = model or TextModel(config)
    backbone, head = model.module.backbone, lm_head(config)

    def init(key: Any) -> dict[str, Any]:
        key_encoder, key_head = jax.random.split(key)
        table = jnp.zeros((backbone.vocabulary, backbone.width))
        own = head.init(key_head, table[None, :1], table)["params"]
        return {"params": {**model.init(key_encoder)["params"], "head": own}}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        texts = Texts(batch["tokens"], batch["length"])
        found = predict(config, model, params, texts, state.step_key, train=True)
        return Loss(jnp.mean(found.nats), {"accuracy": jnp.mean(found.right)})

    around = common.surroundings(config, model) | {"init_variables": init}
    return gradient_task(
        loss=loss, batches=model.batches,
        batch_spec=piece_spec(config.train.batch_size, length=config.tokens.max_length), **around,
    )  # fmt: skip


def lm_head(config: Any) -> MaskedLMHead:
    """The head from hidden states to tokens."""
    return MaskedLMHead(dtype=jnp.dtype(config.dtype))


def predict(
    config: Any, model: TextModel, params: Any, texts: Texts, key: Any, *, train: bool
) -> Prediction:
    """Hides tokens of texts and predicts them."""
    key_mask, key_dropout = jax.random.split(key)
    hidden = mask_tokens(
        key_mask, texts, rate=config.masking.rate, vocabulary=model.special.drawn
    )  # fmt: skip
    numbers, mask = with_ends(hidden.texts, **model.special.ends)
    states: Any = model.module.backbone.apply(
        {"params": params["backbone"]}, numbers, mask, train=train, rngs={"dropout": key_dropout}
    )
    # A place is counted from the token behind the one that begins a text.
    states = jnp.take_along_axis(states, hidden.places[..., None] + 1, axis=1)
    table = params["backbone"]["tokens"]["embedding"]
    logits: Any = lm_head(config).apply({"params": params["head"]}, states, table)
    right = (jnp.argmax(logits, axis=-1) == hidden.targets) & hidden.chosen
    return Prediction(
        masked_lm(logits, hidden.targets, where=hidden.chosen, reduction="none"),
        jnp.sum(right, axis=1) / jnp.maximum(jnp.sum(hidden.chosen, axis=1), 1),
        hidden,
    )


def unseen_documents(config: Any, model: TextModel) -> list[str]:
    """Documents of the test split, those that are trained on left out.

    Raises:
      UserError: All of them are trained on.
    """
    options = config.data
    if options.name in RELATED:  # pages are searched for among those of the training split
        documents = load_documents(options.name, options.test, data_dir=options.data_dir)
    else:
        documents = model.corpus.collection(options.tasks[0], "test").documents
    trained = set(model.corpus.training_texts)
    documents = [text for text in documents if text not in trained]
    if not documents:
        raise UserError(
            f"data.name is {options.name!r}, all of whose test documents are trained on, expected "
            "documents of their own in data.test"
        )
    return documents


def held_out(config: Any, model: TextModel, params: Any) -> Prediction:
    """Predictions in unseen documents, the same tokens hidden whatever the parameters."""
    found = pieces(
        model.tokenizer, unseen_documents(config, model), length=config.tokens.max_length
    )
    texts = Texts(*(jnp.asarray(found[key][:HELD_OUT]) for key in ("tokens", "length")))

    def of_one(params: Any, one: tuple[Any, Texts]) -> Prediction:
        number, text = one
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        texts = jax.tree.map(lambda leaf: leaf[None], text)
        own = predict(config, model, params, texts, key, train=False)
        return jax.tree.map(lambda leaf: leaf[0], own)

    def of_all(params: Any, texts: Texts) -> Prediction:
        many = jnp.arange(len(texts.tokens)), texts
        return jax.lax.map(partial(of_one, params), many, batch_size=config.train.batch_size)

    return jax.tree.map(np.asarray, jax.jit(of_all)(params, texts))


def by_frequency(config: Any, model: TextModel, hidden: Masked) -> np.ndarray:
    """Cross-entropy of hidden tokens by how often tokens stand in the training texts."""
    found = pieces(model.tokenizer, model.corpus.training_texts, length=config.tokens.max_length)
    inside = np.arange(config.tokens.max_length) < found["length"][:, None]
    counts = 1.0 + np.bincount(found["tokens"][inside], minlength=model.module.backbone.vocabulary)
    nats = np.log(counts.sum()) - np.log(counts[hidden.targets])
    return (nats * hidden.chosen).sum(axis=1) / hidden.chosen.sum(axis=1)


def encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state gives, the head left out."""
    return text_encoder(config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, predicts hidden tokens of unseen documents, draws."""
    model = TextModel(config)
    problem = task(config, model)
    start = first_state(config, problem).variables
    untrained = held_out(config, model, start["params"])
    found = held_out(
        config, model, common.train_encoder(config, run, problem, model).variables["params"]
    )
    frequencies = by_frequency(config, model, found.hidden)
    rows: dict[str, Any] = {
        "by frequency": frequencies,
        "untrained": untrained.nats,
        "trained": found.nats,
    }
    nats = t_interval(np.stack(list(rows.values())))
    figures.bars(
        run.figure("nats.png"), list(rows), {"cross-entropy": nats.mean},
        {"cross-entropy": nats.high - nats.mean}, ylabel="nats a token",
    )  # fmt: skip
    figures.training_curves(run.figure, run.path, {"train/loss": "cross-entropy (nats)"})
    metrics = {"accuracy": float(found.right.mean())}
    metrics |= {f"nats_{name.replace(' ', '_')}": float(rows[name].mean()) for name in rows}
    for prefix, own in (("", found), ("untrained_", untrained)):
        gain = t_interval(frequencies - own.nats)
        metrics |= with_bounds(f"{prefix}nats_under_frequencies", gain)
    return metrics
