"""Scores of word2vec's settings on docstrings and code, which searches read."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml import data
from rml.data.subword import WORD
from rml.models.word2vec import Options, Sizes, draw_pairs, settings_nats
from rml.training.cross_entropy_search import Setting


def words(config: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Tokens of the training text with counts of its words, and tokens of held-out text.

    The commonest words are kept; others are left out of the texts.
    """
    options = config.data

    def read(part: str) -> list[str]:
        texts = data.load_documents(options.name, options[part], data_dir=options.data_dir)
        return [word for text in texts for word in WORD.findall(text.lower())]

    train, held_out = read("train"), read("validation")
    found, counts = np.unique(train, return_counts=True)
    kept = found[np.argsort(-counts, kind="stable")[: config.vocabulary]].tolist()
    number = {word: i for i, word in enumerate(kept)}
    tokens, tested = (
        jnp.asarray([number[word] for word in own if word in number], jnp.int32)
        for own in (train, held_out)
    )
    counted = jnp.bincount(tokens, length=len(kept)).astype(jnp.float32)
    return (tokens, counted), tested


def scored(config: Any, settings: Sequence[Setting]) -> np.ndarray:
    """Minus the nats of held-out neighbours by every setting, some settings in one program."""
    text, tested = words(config)
    of_pairs, of_training = jax.random.split(jax.random.key(config.seed))
    pairs = draw_pairs(of_pairs, tested, window=config.score.window, number=config.score.pairs)
    space = config.space
    sizes = Sizes(max(space.negatives), max(space.width), config.train.batch, config.train.steps)
    found = []
    for start in range(0, len(settings), config.train.together):
        own = list(settings[start : start + config.train.together])
        filled = own + own[-1:] * (config.train.together - len(own))  # one shape, one program
        arrays = Options(*(jnp.asarray([one[name] for one in filled]) for name in Options._fields))
        nats = settings_nats(of_training, text, pairs, arrays, sizes)
        found.append(-np.asarray(nats)[: len(own)])
    return np.concatenate(found)
