"""Programs share what JAX makes anew for each, which is a seventh of the time of tests.

Every program is written in an MLIR context of its own, into which all dialects are loaded: five to
ten milliseconds, where a test's program often takes twenty in all. Here a thread has one context
for some hundred programs. What it has made it keeps, so that it is replaced now and then.
"""

import threading

from jax._src.interpreters import mlir

PROGRAMS = 256


def share() -> None:
    """Lets the programs of this process share contexts from now on."""
    make, own = mlir.make_ir_context, threading.local()

    def shared():
        count = getattr(own, "count", 0)
        if count % PROGRAMS == 0:
            own.context = make()
        own.count = count + 1
        return own.context

    mlir.make_ir_context = shared
