"""Small language models trained on real text, that differ in one part alone.

`task` is the problem; of models that differ in their attention, `trained` gives each the same
seeds, so the same first weights and the same batches. Seeds train as one program, see
`experiments.common.many`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from rml import data
from rml.data import tokens
from rml.data.source import Arrays
from rml.errors import UserError
from rml.models import Llama, Probe, pretrained
from rml.models.attention import Attend, attend
from rml.ops import t_interval
from rml.training import (
    Loss,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
)

SEPARATOR = tokens.SPECIAL.index("[SEP]")
PARTS = ("train", "validation", "test")
ROWS = 8
"""Windows that are evaluated at a time."""
Attentions = Mapping[str, Attend | Sequence[Attend]]
"""By name what all layers attend by, or each of them."""
Adapt = Callable[[Any, TrainState], Any]
"""Makes the model's parameters of those that are trained."""
Penalty = Callable[[TrainState, Any], tuple[Array, Mapping[str, Array]]]
"""What is added to the loss, and metrics, from the state and what a probe found."""


class Text(NamedTuple):
    """Real text as tokens of one vocabulary.

    Attributes:
      tokenizer: What made them, learned on the training split.
      streams: Tokens of all documents, joined, by "train", "validation" and "test".
    """

    tokenizer: Any
    streams: Mapping[str, Int[np.ndarray, " n"]]

    def windows(self, part: str, length: int, most: int | None = None) -> Int[np.ndarray, "n t"]:
        """Windows that do not overlap.

        Args:
          part: "train", "validation" or "test".
          length: Number of tokens of each.
          most: Number of windows to take, evenly among all; all if not given.

        Raises:
          UserError: There is no whole window.
        """
        joined = self.streams[part]
        count = len(joined) // length
        if not count:
            raise UserError(
                f"the {part} text has {len(joined)} tokens, expected at least a window of {length}"
            )
        cut = joined[: count * length].reshape(count, length)
        return cut[np.linspace(0, count - 1, min(most or count, count)).astype(int)]


def held_out_windows(config: Any, text: Text) -> dict[str, Int[np.ndarray, "n t"]]:
    """Windows of "validation" and "test" as a config has them."""
    options = config.text
    return {
        part: text.windows(part, options.length, options.windows) for part in ("validation", "test")
    }


@functools.lru_cache(maxsize=1)
def decoder(name: str) -> pretrained.Pretrained:
    """A pretrained decoder, the last one kept."""
    return pretrained.load(name)


def read_text(config: Any) -> Text:
    """Reads the documents of a config.

    Their vocabulary is that of the pretrained decoder that `model.name` names, or one of
    `text.vocabulary` tokens, learned on "train".
    """
    options = config.data
    documents = {
        part: data.load_documents(options.name, options[part], data_dir=options.data_dir)
        for part in PARTS
    }
    if "name" in config.model:
        known = decoder(config.model.name)
        tokenizer, end = known.tokenizer, known.config.get("eos_token_id")
        if not isinstance(end, int):
            raise UserError(
                f"eos_token_id of model.name={config.model.name} is {end}, expected the one token "
                "that ends a document"
            )
    else:
        tokenizer = tokens.train_tokenizer(documents["train"], vocabulary=config.text.vocabulary)
        end = SEPARATOR
    streams = {part: stream(tokenizer, own, end=end) for part, own in documents.items()}
    return Text(tokenizer, streams)


def stream(
    tokenizer: Any, documents: Sequence[str], *, end: int = SEPARATOR
) -> Int[np.ndarray, " n"]:
    """Tokens of all documents in their order, each followed by the token `end`."""
    encoded = tokens.encode(tokenizer, documents, max_length=2**30, special=False)
    last = np.array([end], np.int32)
    return np.concatenate([part for own in encoded for part in (own, last)])


def language_model(config: Any, attention: Attend | Sequence[Attend] = attend) -> Llama:
    """The model of a config, with an attention in all layers or with one for each.

    With `model.name` it is that pretrained decoder, with the other attributes of `model`.
    """
    if "name" in config.model:
        own = {key: value for key, value in config.model.items() if key != "name"}
        module: Any = decoder(config.model.name).module
        return module.clone(attention=attention, **own)
    return Llama(
        vocabulary=config.text.vocabulary,
        positions=config.text.length,
        attention=attention,
        tied=True,
        **config.model,
    )


def task(
    config: Any,
    text: Text,
    attention: Attend | Sequence[Attend] = attend,
    *,
    positions: Callable[[TrainState, tuple[int, int]], Array] | None = None,
    start: Any = None,
    extra: Mapping[str, Any] | None = None,
    probe: Probe | None = None,
    penalty: Penalty | None = None,
    adapt: Adapt | None = None,
) -> Task:
    """The problem of predicting every next token of windows.

    Args:
      config: The run's config, of which `model`, `text`, `optimizer`, `train` and `seed` are read.
        Windows have `text.length` tokens, and `text.windows` of them are validated on.
      text: The text.
      attention: What attends.
      positions: Positions in training, from the state and the shape of a batch; as in the text if
        not given.
      start: First parameters; drawn if not given.
      extra: What `TrainState.extra` holds.
      probe: What is measured in every block in training, for the penalty.
      penalty: What is added to the loss.
      adapt: What makes the model's parameters of trained ones, such as of adapters and of what
        `extra` holds; they are the same if not given.
    """
    module = language_model(config, attention)
    train, validation = (
        text.windows(part, config.text.length, most)
        for part, most in (("train", None), ("validation", config.text.windows))
    )

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        tokens = batch["tokens"][:, :-1]
        at = None if positions is None else positions(state, tokens.shape)
        own = params if adapt is None else adapt(params, state)
        logits, probed = logits_of(module, own, tokens, at, probe)
        lost = next_nats(logits, batch["tokens"]).mean()
        if penalty is None:
            return Loss(lost)
        added, metrics = penalty(state, probed)
        return Loss(lost + added, {"nats": lost, **metrics})

    def variables(key: Any) -> Any:
        return (
            module.init(key, jnp.zeros((1, 2), jnp.int32)) if start is None else {"params": start}
        )

    def batches(part: int = 0, parts: int = 1) -> grain.IterDataset:
        source = Arrays({"tokens": train}, name=config.data.name, split=config.data.train)
        return data.batches(
            source, batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts
        )

    def evaluate(state: TrainState) -> dict[str, float]:
        own = state.params if adapt is None else adapt(state.params, state)
        return {"nats": float(_nats(module, own, validation).mean())}

    shape = (config.train.batch_size, config.text.length)
    return gradient_task(
        init_variables=variables,
        loss=loss,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=batches,
        evaluate=evaluate,
        batch_spec={"tokens": jax.ShapeDtypeStruct(shape, np.int32)},
        extra=None if extra is None else lambda *_: dict(extra),
    )


def next_nats(logits: Float[Array, "b n v"], tokens: Int[Array, "b t"]) -> Float[Array, "b n"]:
    """Cross-entropy of tokens 1 to n, n = t - 1, under logits that were made of those before."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, tokens[:, 1:])


def trained(
    config: Any, run: RunDirectory, text: Text, attentions: Attentions
) -> dict[str, list[Any]]:
    """Trains a model with each attention and each of `config.seeds` seeds from `config.seed` on.

    Args:
      config: The run's config.
      run: Its directory; each attention has its own in `methods`, where a stopped run continues.
      text: The text.
      attentions: What is compared.

    Returns:
      By name the parameters of every seed.
    """
    seeds = range(config.seeds * config.seed, config.seeds * (config.seed + 1))

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        configs = [replaced(config, {"seed": seed}) for seed in seeds]
        together = many(lambda own: task(own, text, attentions[name]), configs)
        state = on_one_device(train(config, inner, together, "eval/nats"))
        found = {"nats": together.evaluate(state)["nats"]}
        Progress().note(f"{name}: {found['nats']:.4f} nats a token of validation windows")
        return found, [unstack(state, i).params for i in range(len(seeds))]

    return {name: params for name, (_, params) in for_each(run, attentions, measure).items()}


def nats(
    config: Any,
    attention: Attend | Sequence[Attend],
    params: Sequence[Any],
    windows: Int[np.ndarray, "m t"],
) -> Float[np.ndarray, "seeds m n"]:
    """Nats of all tokens of windows but their first, by position, of every seed's model.

    Args:
      config: The run's config.
      attention: What the models attend by; another one than in training is as possible.
      params: Parameters of every seed, of `trained`.
      windows: Tokens.
    """
    module = language_model(config, attention)
    return np.stack([np.asarray(_nats(module, own, windows)) for own in params])


def compared(
    config: Any, run: RunDirectory, text: Text, attentions: Attentions
) -> tuple[dict[str, list[Any]], Int[np.ndarray, "m t"], dict[str, Float[np.ndarray, "s m n"]]]:
    """Trains with each attention and reads test windows with it.

    Returns:
      By name the parameters of every seed, as `trained`; the windows; by name their nats.
    """
    params = trained(config, run, text, attentions)
    windows = text.windows("test", config.text.length, config.text.windows)
    found = {name: nats(config, attentions[name], own, windows) for name, own in params.items()}
    return params, windows, found


def differences(pairs: Mapping[str, Float[np.ndarray, " m"]]) -> dict[str, float]:
    """Metrics by name: means over windows, each with its interval."""
    metrics: dict[str, float] = {}
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics


def logits_of(
    module: Llama,
    params: Any,
    tokens: Array,
    positions: Array | None = None,
    probe: Probe | None = None,
) -> tuple[Array, Any]:
    """Logits of the next token at every position, and what a probe found."""
    variables = {"params": params}
    states: Any = module.apply(variables, tokens, positions=positions, probe=probe)
    hidden, probed = (states, None) if probe is None else (states.last, states.probed)
    return jnp.asarray(module.apply(variables, hidden, method="logits")), probed


@functools.partial(jax.jit, static_argnames="module")
def _nats(module: Llama, params: Any, windows: Array) -> Array:
    def of_window(window: Array) -> Array:
        return next_nats(logits_of(module, params, window[None, :-1])[0], window[None])[0]

    return jax.lax.map(of_window, windows, batch_size=ROWS)
