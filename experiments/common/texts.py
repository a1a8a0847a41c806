"""Texts as a config names them: the corpus, the text encoder, and the encoder of another run."""

import dataclasses
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp

from experiments.common.encoders import load_embedder
from rml import data, models
from rml.data import tokens
from rml.data.collections import RetrievalData
from rml.data.pieces import piece_batches
from rml.data.special import SpecialTokens
from rml.embedding import TextEmbedder
from rml.errors import local_path
from rml.models import pretrained
from rml.models.attention import attend
from rml.models.text_encoder import TextEncoder
from rml.training import TrainState, make_mesh


class Corpus:
    """Documents and collections of a config; nothing is opened before it is needed.

    `data.train` names the split whose documents are trained on, `data.validation` and `data.test`
    those that are searched, for each of `data.tasks`.
    """

    def __init__(self, config: Any):
        """Remembers the config, of which `data` and `tokens` are read.

        Args:
          config: The run's config.
        """
        self.config = config
        self.collection = cache(self._collection)

    def _collection(self, task: str, part: str) -> RetrievalData:
        """The collection of a task, of the split that `data` has for "train", "test", ..."""
        options = self.config.data
        return data.load_retrieval(
            options.name, options[part], task=task, data_dir=options.data_dir
        )

    @cached_property
    def training_texts(self) -> list[str]:
        """The documents that are trained on."""
        options = self.config.data
        return data.load_documents(options.name, options.train, data_dir=options.data_dir)

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer learned on the training texts; of a run that is read, the one in its file."""
        options = self.config.tokens
        if "file" in options:
            return tokens.load_tokenizer(options.file)
        return tokens.train_tokenizer(self.training_texts, vocabulary=options.vocabulary)


class TextModel:
    """A text encoder to train, with its tokenizer and the variables that training starts from.

    Attributes:
      corpus: The config's texts.
      module: `(tokens, mask, *, train=False) -> [b, d]`, of unit length.
    """

    def __init__(self, config: Any, corpus: Corpus | None = None, start: Any = None):
        """Prepares the encoder; texts are opened when they are first needed.

        Args:
          config: The run's config, of which `model`, `tokens`, `dtype` and `evaluation` are read.
            `model.name` is "bert" (from random, its tokenizer trained on the texts), "run" (the
            encoder of the run in the directory `model.run`), or a name of `rml.models.pretrained`
            such as "minilm".
          corpus: The config's texts, where another model has opened them.
          start: Variables that training starts from in the place of random ones, of a "bert".

        Raises:
          UserError: An unknown name, or files that cannot be read.
        """
        self.config, self.corpus = config, corpus or Corpus(config)
        self._start: Any = start
        name = config.model.name
        if name == "bert":
            options = {k: v for k, v in config.model.items() if k not in ("name", "pooling")}
            vocabulary, positions = config.tokens.vocabulary, config.tokens.positions
            backbone = models.Bert(
                vocabulary=vocabulary, positions=positions, dtype=jnp.dtype(config.dtype), **options
            )
            self.module = TextEncoder(backbone, pooling=config.model.pooling, normalize=True)
            return
        if name == "run":
            found = load_text_encoder(local_path(config.model.run, "model.run"), dtype=config.dtype)
            module, self._start, self.tokenizer = found.module, found.variables, found.tokenizer
        else:
            loaded = pretrained.load(name, dtype=config.dtype, **config.model.get("options", {}))
            module, self._start = loaded.text_encoder()
            self.tokenizer = loaded.tokenizer
        self.module = module.clone(normalize=True)

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`: that of the start, or one learned on the texts."""
        return self.corpus.tokenizer

    @property
    def special(self) -> SpecialTokens:
        """Numbers of special tokens, with the tokenizer's vocabulary once it is there.

        Before texts are opened it is the one asked for, of which fewer tokens may be learned.
        """
        known = vars(self).get("tokenizer")
        if known is None:
            return SpecialTokens.trained(self.config.tokens.vocabulary)
        return SpecialTokens.of(known)

    @property
    def is_random(self) -> bool:
        """Whether training starts from random variables."""
        return self._start is None

    def random(self, key: Any) -> Any:
        """Random variables, boxed by their logical axes."""
        row = jnp.zeros((1, 2), jnp.int32)
        return self.module.init(key, row, jnp.ones((1, 2), bool))

    def init(self, key: Any) -> Any:
        """The variables that training starts from, boxed by their logical axes."""
        if self.is_random:
            return self.random(key)
        # Random values are not computed, only their boxes are used.
        return jax.tree.map(
            lambda box, value: box.replace_boxed(jnp.asarray(value)),
            jax.eval_shape(self.random, key),
            self._start,
            is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
        )

    def batches(self, part: int = 0, parts: int = 1) -> grain.IterDataset:
        """Pieces of the training texts, this part of `parts` equal parts of each batch."""
        config = self.config
        return piece_batches(
            self.tokenizer, self.corpus.training_texts, length=config.tokens.max_length,
            name=config.data.name, split=config.data.train,
            batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts,
        )  # fmt: skip

    def features(self, variables: Any) -> TextEmbedder:
        """The encoder with these variables, as the config's evaluation applies it."""
        options = self.config.evaluation
        return TextEmbedder(
            self.module, variables, self.tokenizer,
            min(options.max_length, self.module.backbone.positions), options.batch_tokens,
            make_mesh(self.config.mesh),
        )  # fmt: skip


def built_by(module: TextEncoder) -> dict[str, Any] | None:
    """What a config has in `model` and `tokens` to build an encoder, so that its start may go.

    Args:
      module: The encoder.

    Returns:
      Both parts; None for another family than BERT, or attention that a config cannot name.
    """
    backbone = module.backbone
    if type(backbone) is not models.Bert:
        return None
    if backbone.attention is not attend and not isinstance(backbone.attention, str):
        return None
    own = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)}
    sizes = {name: own.pop(name) for name in ("vocabulary", "positions")}
    if own["attention"] is attend:
        del own["attention"]
    for name in ("parent", "name", "dtype", "param_dtype"):
        del own[name]
    return {"model": {**own, "name": "bert", "pooling": module.pooling}, "tokens": sizes}


def text_encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state gives."""
    return TextModel(config).features(state.variables)


def load_text_encoder(
    directory: Path, *, dtype: str = "float32", key: str = "model.run"
) -> TextEmbedder:
    """The text encoder of another run, by its recipe's own `encoder(config, state)`.

    Args:
      directory: The run directory.
      dtype: Type that the encoder computes in.
      key: Key of the config that named the directory, for messages.

    Returns:
      The encoder, with the tokenizer of the run directory.

    Raises:
      UserError: There is no run, none that learns an encoder of texts, or it has not ended.
    """
    found: TextEmbedder = load_embedder(directory, "texts", key=key, dtype=dtype, ended=True)[1]
    return found
