"""What stands beside a sparse model, and what it is good for: thresholds, prose, predictors."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.common.small_lm import Text, stream
from experiments.sparsity.prosparse_training import BASE, RELU, Reader, Reading
from rml import data
from rml.models import Probe, Thresholds
from rml.sparsity import calibrate, fit_predictor, predict, predictor_scores

CALIBRATED = 64
"""Training windows that thresholds of the dense model are calibrated on."""


def thinned(
    reader: Reader, text: Text, params: list[Any], windows: np.ndarray, sparsity: float
) -> Reading:
    """The dense model, its channels left out by thresholds at a sparsity, without training."""
    module, length = reader.module(BASE), reader.config.text.length
    own = text.windows("train", length, CALIBRATED)[:, :-1]
    read = []
    for seed in params:
        least = calibrate(module, {"params": seed}, own, sparsity=sparsity)
        read.append(reader.read(BASE, [seed], windows, least))
    nats, zeros, live, size = zip(*read, strict=True)
    return Reading(np.mean(nats, 0), np.mean(zeros, 0), np.concatenate(live), np.mean(size, 0))


def prose_windows(config: Any, text: Text) -> Int[np.ndarray, "n t"]:
    """Reads windows of the config's `other`, in the tokens of a text."""
    options = config.other
    documents = data.load_documents(options.name, options.test, data_dir=options.data_dir)
    prose = Text(text.tokenizer, {"test": stream(text.tokenizer, documents)})
    return prose.windows("test", config.text.length, config.text.windows)


def on_prose(
    reader: Reader,
    windows: Int[np.ndarray, "n t"],
    models: Mapping[str, tuple[list[Any], Thresholds | None, Reading]],
) -> dict[str, float]:
    """Measures sparsity on windows of prose, and how many more zeros there are in code.

    Args:
      reader: What reads.
      windows: The windows, as `prose_windows` reads them.
      models: Parameters of every seed, thresholds, and what was read of code, by name.

    Returns:
      Metrics, two of each model.
    """
    metrics = {}
    for name, (params, thresholds, code) in models.items():
        own = reader.read(RELU, params, windows, thresholds).zeros.mean()
        metrics[f"prose_sparsity_{name}"] = own
        metrics[f"code_sparser_{name}"] = code.zeros.mean() - own
    return metrics


def predicted(
    config: Any, reader: Reader, text: Text, models: dict[str, list[Any]]
) -> dict[str, float]:
    """Recall and predicted sparsity of low-rank predictors on test windows, means over layers.

    Args:
      config: The run's config.
      reader: What reads.
      text: The text.
      models: Parameters of every seed, of which the first is measured, by name.
    """
    options, metrics = config.predicted, {}

    def fitted(inputs: Any, live: Any, others: Any, wanted: Any, key: Any) -> Any:
        own = fit_predictor(
            inputs, live, rank=options.rank, steps=options.steps, key=key,
            learning_rate=options.learning_rate, batch_size=options.batch_size,
        )  # fmt: skip
        at = jnp.log(options.least) - jnp.log1p(-options.least)
        return predictor_scores(predict(own, others) > at, wanted)

    of_layers = jax.jit(jax.vmap(fitted))  # one program for all models
    for name, params in models.items():
        parts = []
        for part, count in (("train", options.windows), ("test", options.windows // 2)):
            windows = text.windows(part, config.text.length, count)[:, :-1]
            parts.append(_pairs(reader.module(RELU), params[0], jnp.asarray(windows)))
        (inputs, live), (others, wanted) = parts
        keys = jax.random.split(jax.random.key(config.seed), len(inputs))
        scores = of_layers(inputs, live, others, wanted, keys)
        metrics[f"predictor_recall_{name}"] = float(scores.recall.mean())
        metrics[f"predictor_sparsity_{name}"] = float(scores.sparsity.mean())
    return metrics


@functools.partial(jax.jit, static_argnames="module")
def _pairs(module: Any, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What every layer's MLP reads [layers, n, d], and which channels are live [layers, n, f]."""
    states = module.apply({"params": params}, tokens, probe=Probe(_seen))
    inputs, live = (x.reshape(len(x), -1, x.shape[-1]) for x in states.probed)
    return inputs, live


def _seen(activations: Any, own: Any) -> tuple[jax.Array, jax.Array]:
    del own
    return activations.mlp_input, activations.hidden != 0
