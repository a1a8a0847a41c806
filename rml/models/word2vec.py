"""word2vec: vectors of words that predict their neighbours, by skip-gram with negative samples.

Source: Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality,
arXiv:1310.4546, sections 2.2 and 2.3.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from rml.errors import UserError


class Vectors(NamedTuple):
    """Vectors of a vocabulary.

    Attributes:
      centers: [v, d], of words as centers.
      contexts: [v, d], of words as neighbours.
    """

    centers: Any
    contexts: Any


class Options(NamedTuple):
    """Hyper-parameters, numbers or arrays: several settings train in one program by `jax.vmap`.

    Attributes:
      window: Farthest neighbour; a center's own reach is drawn from 1 to it.
      negatives: Number of noise words of a pair.
      width: Components of a vector that are used.
      rate: Learning rate of Adam, which falls to zero.
      subsample: t: a word of frequency f is kept with the chance √(t / f), at most 1.
      power: Power of counts by which noise words are drawn.
    """

    window: Any = 5
    negatives: Any = 5
    width: Any = 64
    rate: Any = 0.01
    subsample: Any = 1e-3
    power: Any = 0.75


class Sizes(NamedTuple):
    """What is static: the largest of every option that is a shape, and how long training is.

    Attributes:
      negatives: Most noise words of a pair.
      width: Components of a vector.
      batch: Pairs of a step.
      steps: Number of steps.
    """

    negatives: int = 20
    width: int = 128
    batch: int = 512
    steps: int = 500


def pair_losses(
    vectors: Vectors,
    centers: Int[Array, " b"],
    contexts: Int[Array, " b"],
    noise: Int[Array, "b k"],
    weights: Float[Array, "b k"],
) -> Float[Array, " b"]:
    """Computes -log σ(u_o · v_c) - Σ_k w_k log σ(-u_k · v_c) of pairs.

    Args:
      vectors: v of centers and u of contexts.
      centers: Center word c of each pair.
      contexts: Its neighbour o.
      noise: Its noise words k.
      weights: What each noise word counts, 1 or 0.

    Returns:
      Nats of each pair.

    Source: arXiv:1310.4546, equation 4.
    """
    center = vectors.centers[centers]
    right = jnp.einsum("bd,bd->b", center, vectors.contexts[contexts])
    wrong = jnp.einsum("bd,bkd->bk", center, vectors.contexts[noise])
    nothing = (weights * jax.nn.log_sigmoid(-wrong)).sum(axis=1)
    return -jax.nn.log_sigmoid(right) - nothing


def draw_pairs(
    key: Key[Array, ""], tokens: Int[Array, " n"], *, window: Any, number: int
) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
    """Draws centers of a text and a neighbour of each; the text goes on at its beginning.

    Neighbours at distance d are as likely as `window + 1 - d`: so often each is met where every
    center pairs with all words within a reach that is uniform in 1 to the window.

    Args:
      key: Random key.
      tokens: The text.
      window: Farthest neighbour.
      number: Number of pairs.

    Source: Mikolov et al. 2013, arXiv:1301.3781, section 3.2.
    """
    of_place, of_distance, of_side = jax.random.split(key, 3)
    n = tokens.shape[0]
    place = jax.random.randint(of_place, (number,), 0, n)
    # The inverse of e(e + 1) / (w(w + 1)), the chance of at most e = w + 1 - d.
    below = jax.random.uniform(of_distance, (number,)) * window * (window + 1)
    inverse = jnp.ceil((jnp.sqrt(1 + 4 * below) - 1) / 2).astype(jnp.int32)
    distance = window + 1 - jnp.clip(inverse, 1, window)
    side = jax.random.choice(of_side, jnp.array([-1, 1]), (number,))
    return tokens[place], tokens[(place + side * distance) % n]


def noise_table(counts: Float[Array, " v"], power: Any) -> Float[Array, " v"]:
    """Computes the cumulative law of noise words, proportional to a power of their counts."""
    raised = jnp.where(counts > 0, jnp.maximum(counts, 1e-9) ** power, 0.0)
    return jnp.cumsum(raised) / raised.sum()


def draw_noise(key: Key[Array, ""], table: Float[Array, " v"], shape: Any) -> Int[Array, "..."]:
    """Draws words by the cumulative law of `noise_table`."""
    drawn = jax.random.uniform(key, shape)
    # A word without a share has an empty step, which is passed over.
    return jnp.minimum(jnp.searchsorted(table, drawn, side="right"), table.shape[0] - 1)


def kept_chance(counts: Float[Array, " v"], subsample: Any) -> Float[Array, " v"]:
    """Computes the chance √(t / f), at most 1, that an occurrence of each word is kept."""
    frequency = jnp.maximum(counts, 1e-9) / counts.sum()
    return jnp.minimum(1.0, jnp.sqrt(subsample / frequency))


def train_word2vec(
    key: Key[Array, ""],
    tokens: Int[Array, " n"],
    counts: Float[Array, " v"],
    options: Options,
    *,
    sizes: Sizes,
) -> Vectors:
    """Trains vectors on a text by Adam.

    Args:
      key: Random key of the first vectors and of all draws.
      tokens: The text as word numbers.
      counts: How often each word stands in it.
      options: Hyper-parameters; with `jax.vmap` over them all settings see the same key.
      sizes: Shapes and the number of steps.

    Returns:
      The vectors; components beyond `options.width` are zero.

    Raises:
      UserError: If an option that is not traced is above the size that holds it.
    """
    _check_options(options, sizes)
    of_start, of_steps = jax.random.split(key)
    v = counts.shape[0]
    used = jnp.arange(sizes.width) < options.width
    width = jnp.minimum(options.width, sizes.width)
    start = jax.random.uniform(of_start, (v, sizes.width), minval=-0.5, maxval=0.5)
    vectors = Vectors(jnp.where(used, start / width, 0.0), jnp.zeros((v, sizes.width)))
    table = noise_table(counts, options.power)
    chance = kept_chance(counts, options.subsample)
    counted = (jnp.arange(sizes.negatives) < options.negatives).astype(jnp.float32)
    adam = optax.scale_by_adam()

    def loss(vectors: Vectors, key: Any) -> Array:
        of_pairs, of_noise, of_kept = jax.random.split(key, 3)
        centers, contexts = draw_pairs(of_pairs, tokens, window=options.window, number=sizes.batch)
        noise = draw_noise(of_noise, table, (sizes.batch, sizes.negatives))
        kept = (
            jax.random.uniform(of_kept, (2, sizes.batch)) < chance[jnp.stack([centers, contexts])]
        )
        own = pair_losses(vectors, centers, contexts, noise, jnp.broadcast_to(counted, noise.shape))
        both = kept.all(axis=0)
        return (both * own).sum() / jnp.maximum(both.sum(), 1)

    def step(carry: Any, i: Array) -> tuple[Any, None]:
        vectors, state = carry
        gradient = jax.grad(loss)(vectors, jax.random.fold_in(of_steps, i))
        gradient = jax.tree.map(lambda g: jnp.where(used, g, 0.0), gradient)
        change, state = adam.update(gradient, state)
        rate = options.rate * (1 - i / sizes.steps)
        return (jax.tree.map(lambda x, d: x - rate * d, vectors, change), state), None

    (vectors, _), _ = jax.lax.scan(step, (vectors, adam.init(vectors)), jnp.arange(sizes.steps))
    return vectors


def context_nats(
    vectors: Vectors,
    counts: Float[Array, " v"],
    centers: Int[Array, " b"],
    contexts: Int[Array, " b"],
    *,
    power: Any,
    subsample: Any,
) -> Float[Array, " b"]:
    """Computes -log p(context | center) in nats, with the laws of noise and subsampling put back.

    Pairs are kept with the chance κ(c) κ(o) of `kept_chance`. Negative samples make u_o · v_c
    estimate log κ(o) p(o | c) - log p_noise(o) up to a number of c and of how many they are. Thus
    p(o | c) is a softmax over o of u_o · v_c + log p_noise(o) - log κ(o): settings compare.

    Args:
      vectors: The vectors.
      counts: How often each word stands in the training text.
      centers: Center words.
      contexts: Their neighbours.
      power: Power of counts of the noise in training.
      subsample: t of training, see `Options`.

    Source: the estimate, Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization,
    2014, equation 7; its use as a score is ours.
    """
    noise = power * jnp.log(jnp.maximum(counts, 1e-9))
    kept = jnp.log(kept_chance(counts, subsample))
    logits = vectors.centers[centers] @ vectors.contexts.T + noise - kept
    return optax.softmax_cross_entropy_with_integer_labels(logits, contexts)


def _check_options(options: Options, sizes: Sizes) -> None:
    for name in ("negatives", "width"):
        asked, room = getattr(options, name), getattr(sizes, name)
        if not isinstance(asked, jax.core.Tracer) and np.max(asked) > room:
            raise UserError(
                f"{name} is {np.max(asked)}, expected at most {room}, that of the sizes"
            )


def settings_nats(
    key: Key[Array, ""],
    text: tuple[Array, Array],
    pairs: tuple[Array, Array],
    options: Options,
    sizes: Sizes,
) -> Float[Array, " s"]:
    """Trains every setting in one program and gives its mean nats of held-out pairs.

    Args:
      key: Random key, the same for all settings.
      text: Tokens of the training text, and counts of its words.
      pairs: Centers and contexts of the held-out text.
      options: Arrays [s] of hyper-parameters.
      sizes: Shapes and the number of steps.

    Raises:
      UserError: If an option that is not traced is above the size that holds it.
    """
    _check_options(options, sizes)
    return _settings_nats(key, text, pairs, options, sizes)


@functools.partial(jax.jit, static_argnames="sizes")
def _settings_nats(
    key: Key[Array, ""],
    text: tuple[Array, Array],
    pairs: tuple[Array, Array],
    options: Options,
    sizes: Sizes,
) -> Float[Array, " s"]:
    def of_one(own: Options) -> Array:
        vectors = train_word2vec(key, *text, own, sizes=sizes)
        laws = {"power": own.power, "subsample": own.subsample}
        return context_nats(vectors, text[1], *pairs, **laws).mean()

    return jax.vmap(of_one)(options)
