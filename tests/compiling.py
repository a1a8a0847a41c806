"""How the programs of tests are compiled: each once, in shared contexts, optimised only on demand.

Every program is written in an MLIR context of its own, into which all dialects are loaded: five to
ten milliseconds, where a test's program often takes twenty in all. Here a thread has one context
for some hundred programs. What it has made it keeps, so that it is replaced now and then.
"""

import functools
import hashlib
import threading
from typing import Any

import jax
import numpy as np
from jax._src import compiler, core
from jax._src.interpreters import mlir

PROGRAMS = 256
OPTIONS = compiler.get_compile_options
MADE: dict[tuple[bytes, str], Any] = {}
"""Programs of this process by what they say, how they are compiled and for which devices."""


def share_contexts() -> None:
    """Lets the programs of this process share contexts from now on."""
    make, own = mlir.make_ir_context, threading.local()

    def shared():
        count = getattr(own, "count", 0)
        if count % PROGRAMS == 0:
            own.context = make()
        own.count = count + 1
        return own.context

    mlir.make_ir_context = shared


def share_programs() -> None:
    """Compiles programs that say the same once, whichever functions they are traced from."""
    compile_anew = compiler.backend_compile_and_load

    def shared(backend, module, devices, options, host_callbacks):
        if host_callbacks:  # it calls functions of its own
            return compile_anew(backend, module, devices, options, host_callbacks)
        text = mlir.module_to_bytecode(module) + options.SerializeAsString()
        key = hashlib.sha256(text).digest(), str(devices)
        if key not in MADE:
            MADE[key] = compile_anew(backend, module, devices, options, host_callbacks)
        return MADE[key]

    compiler.backend_compile_and_load = shared


def put_arrays() -> None:
    """Puts NumPy's arrays on the device; JAX compiles an identity for every shape and type.

    JAX before 0.10 has no such primitive.
    """
    stage = getattr(core, "stage_p", None)
    if stage is None:
        return
    compiled = stage.impl

    def put(x):
        # A copy, as the identity's output is: what a test changes in place is not seen.
        return jax.device_put(x.copy()) if type(x) is np.ndarray else compiled(x)

    stage.def_impl(put)


def keep_nothing() -> None:
    """Neither writes what this process compiles nor reads what others have written."""
    jax.config.update("jax_enable_compilation_cache", False)


def optimize(level: int) -> None:
    """Has XLA optimise what this process compiles from now on so much, from 0 to 3."""
    compiler.get_compile_options = functools.partial(options_at, level)


def options_at(level, *args, **named):
    """What JAX compiles by, with this level in the place of that of `XLA_FLAGS`."""
    options = OPTIONS(*args, **named)
    options.executable_build_options.debug_options.xla_backend_optimization_level = level
    return options
