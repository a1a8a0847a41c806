"""Points of a Gaussian mixture, in any number."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int, Key

from rml.fewshot.bound import Scalar


@partial(jax.jit, static_argnames=("number", "dimension", "components"))
def gaussian_mixture(
    key: Key[Array, ""], *, number: int, dimension: int, components: int, spread: Scalar
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Draws points around Gaussian centres.

    Args:
      key: Key of the draw.
      number: Number of points n.
      dimension: Dimension d of the points.
      components: Number of centres, each as likely as another.
      spread: Standard deviation of the centres' coordinates; that of the points around them is 1.

    Returns:
      The points, and the components that they come from.
    """
    centres_key, label_key, noise_key = jax.random.split(key, 3)
    centres = spread * jax.random.normal(centres_key, (components, dimension))
    labels = jax.random.randint(label_key, (number,), 0, components)
    return centres[labels] + jax.random.normal(noise_key, (number, dimension)), labels
