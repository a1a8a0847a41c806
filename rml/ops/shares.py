"""How many a share of a number of things is."""

import math


def whole_part(count: float) -> int:
    """Rounds a share times a number down; in floats it may be just short of a whole number.

    Args:
      count: The product, at least 0: 0.29 * 100, for example, is below 29.

    Returns:
      The whole part, of 28.999999999999996 as 29.
    """
    return math.floor(count + 1e-9)
