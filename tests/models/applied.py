"""What a module gives, by programs that all tests of a process share."""

import functools

import jax
import numpy as np


def apply(module, variables, *inputs, **options):
    """What a module gives, as NumPy arrays: each operation on other ones is compiled."""
    flags = {name: option for name, option in options.items() if isinstance(option, bool | str)}
    arrays = {name: option for name, option in options.items() if name not in flags}
    found = program(module, tuple(flags.items()))(variables, inputs, arrays)
    return jax.tree.map(np.asarray, found)


@functools.cache
def program(module, flags):
    """What applies a module, one for all tests."""
    return jax.jit(lambda v, inputs, arrays: module.apply(v, *inputs, **arrays, **dict(flags)))
