"""The text encoder that a config names: from random, pretrained, or another run's."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.registry import find_experiment
from experiments.restore import restore
from rml import models
from rml.data import tokens
from rml.errors import UserError
from rml.models import pretrained
from rml.models.text_encoder import TextEncoder

TOKENIZER = "tokenizer.json"
"""A run's file with the tokenizer that its encoder reads."""


class Special(NamedTuple):
    """Numbers of the tokens that are no words; words have those from `words` on.

    Attributes:
      padding: Fills a row.
      first: Begins a text.
      last: Ends it.
      mask: Stands for a masked word.
      words: The first word.
      vocabulary: Number of all tokens.
    """

    padding: int
    first: int
    last: int
    mask: int
    words: int
    vocabulary: int

    @classmethod
    def of(cls, tokenizer: Any) -> "Special":
        """Those of a tokenizer with BERT's names for them."""
        names = {name: tokenizer.token_to_id(name) for name in tokens.SPECIAL}
        missing = [name for name, number in names.items() if number is None]
        if missing:
            raise UserError(f"the tokenizer has no token {missing[0]!r}, expected {tokens.SPECIAL}")
        return cls(
            names["[PAD]"], names["[CLS]"], names["[SEP]"], names["[MASK]"],
            max(names.values()) + 1, tokenizer.get_vocab_size(),
        )  # fmt: skip


class TextModel:
    """An encoder with its tokenizer and the variables that training starts from.

    Attributes:
      encoder: `(tokens, mask, *, train=False) -> [b, d]`, of unit length.
      special: Numbers of special tokens.
      config: The config that describes the encoder: the run's own, or that of the run it is from.
    """

    def __init__(self, config: Any, texts: Callable[[], list[str]]):
        """Prepares the encoder; texts are opened when they are first needed.

        Args:
          config: The run's config, of which `model`, `tokens` and `dtype` are read. `model.name` is
            "bert" (from random, its tokenizer trained on the texts), "run" (the encoder of the run
            in the directory `model.run`), or a name of `rml.models.pretrained` such as "minilm".
          texts: What a tokenizer is trained on.

        Raises:
          UserError: An unknown name, or files that cannot be read.
        """
        self.config, self._texts, self._run = config, texts, None
        if config.model.name == "run":
            self._run = Path(config.model.run).expanduser()
            self.config = read_config(self._run)
        model = self.config.model
        if model.name == "bert":
            options = {k: v for k, v in model.items() if k not in ("name", "pooling")}
            backbone = models.Bert(
                vocabulary=self.config.tokens.vocabulary,
                positions=self.config.tokens.positions,
                dtype=jnp.dtype(config.dtype),
                **options,
            )
            self._start: Any = None
            self.encoder = TextEncoder(backbone, pooling=model.pooling, normalize=True)
            numbers = {name: number for number, name in enumerate(tokens.SPECIAL)}
            self.special = Special(
                numbers["[PAD]"], numbers["[CLS]"], numbers["[SEP]"], numbers["[MASK]"],
                len(numbers), self.config.tokens.vocabulary,
            )  # fmt: skip
        else:
            loaded = pretrained.load(model.name, dtype=config.dtype, **model.get("options", {}))
            encoder, self._start = loaded.text_encoder()
            self.encoder = encoder.clone(normalize=True)
            self.special = Special.of(loaded.tokenizer)
            self.tokenizer = loaded.tokenizer

    @property
    def encode(self) -> Callable[..., Any]:
        """`(variables, tokens, mask) -> [b, d]`."""
        return self.encoder.apply

    @property
    def width(self) -> int:
        """Length of a text's vector."""
        return self.encoder.backbone.width

    @property
    def is_random(self) -> bool:
        """Whether training starts from random variables."""
        return self._run is None and self._start is None

    def random(self, key: Any) -> Any:
        """Random variables, boxed by their logical axes."""
        row = jnp.zeros((1, 2), jnp.int32)
        return self.encoder.init(key, row, jnp.ones((1, 2), bool))

    def init(self, key: Any) -> Any:
        """The variables that training starts from, boxed by their logical axes."""
        if self._run is not None:
            start = self._of_run()
        elif self._start is not None:
            start = self._start
        else:
            return self.random(key)
        # Random values are not computed, only their boxes are used.
        return jax.tree.map(
            lambda box, value: box.replace_boxed(jnp.asarray(value)),
            jax.eval_shape(self.random, key),
            start,
            is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
        )

    def _of_run(self) -> Any:
        assert self._run is not None
        state = restore(self._run, find_experiment(self.config.experiment).task(self.config))
        return {"params": state.inference_params, **state.model_state}

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`: the run's, or one trained on the texts."""
        if self._run is not None:
            return tokens.load_tokenizer(self._run / TOKENIZER)
        return tokens.train_tokenizer(self._texts(), vocabulary=self.config.tokens.vocabulary)


def read_config(directory: Path) -> ConfigDict:
    """The config of another run.

    Raises:
      UserError: There is no run, or not one with a text encoder.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"model.run is {str(directory)!r}, expected the directory of a run")
    config = ConfigDict(json.loads(file.read_text()))
    if not config.experiment.startswith("retrieval.") or "tokens" not in config:
        raise UserError(
            f"{directory} is a run of {config.experiment}, expected one with a text encoder "
            "(retrieval.contriever)"
        )
    if not (directory / TOKENIZER).is_file():
        raise UserError(f"{directory} has no {TOKENIZER}; let the run end first")
    return config
