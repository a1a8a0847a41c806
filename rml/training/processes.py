"""Several processes that train together: what each reads, who writes, and how they agree.

Every function does the obvious thing in the usual case of one process.
"""

import ctypes
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rml.errors import UserError

HEARTBEAT_SECONDS = 30
"""After this time without a sign of life a process counts as lost."""
JOIN_SECONDS = 120
THREADS_PER_DEVICE = 8
"""Threads of XLA's pool for each device that a CPU is split into."""
SLACK_SECONDS = 10
"""Time in which the runtime tells of a loss that it has found."""


def split_cpu(devices: int) -> None:
    """Makes that many devices of this machine's CPU; call it before anything asks for a device.

    XLA runs all of them on one pool of threads, by default one a device. A collective holds the
    thread of each device that has arrived, and the products that the others are still at want
    threads too: where the pool has none left, all wait for one another until XLA aborts. So the
    pool gets several threads a device, of which few ever run at once.

    Args:
      devices: Number of devices.
    """
    os.environ["NPROC"] = str(max(THREADS_PER_DEVICE * devices, os.cpu_count() or 1))
    jax.config.update("jax_num_cpu_devices", devices)


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    lost: Callable[[str], Any] | None = None,
) -> None:
    """Joins the processes of a run; call it before anything asks for a device.

    Args:
      coordinator: `host:port` of process 0; found by JAX on TPU pods, SLURM and Kubernetes.
      processes: Number of processes.
      index: Index of this process among them.
      lost: `lost(reason)`, called in a thread of the runtime when process 0 cannot be reached or
        says that another one cannot; it must end this process.

    Raises:
      UserError: The others could not be found or did not come.
    """
    try:
        with _calling(lost) if lost else nullcontext():
            jax.distributed.initialize(
                coordinator, processes, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                initialization_timeout=JOIN_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        where = f"at {coordinator}" if coordinator else "of this cluster"
        raise UserError(
            f"cannot join the processes {where} ({reason}); expected all of them to start within "
            f"{JOIN_SECONDS} s of each other, each with its own --process_id"
        ) from None


@contextmanager
def _calling(lost: Callable[[str], Any]) -> Iterator[None]:
    """Makes JAX's client call `lost` where it would print its own account and end the process.

    `jax.distributed.initialize` has no argument for that, the client that it makes has one.
    """
    from jax._src import distributed

    def called(*status: Any) -> None:
        lost(str(*status).strip().splitlines()[0][:160])

    _catch_bad_cast(lambda: lost("process 0 does not answer, or says that another one does not"))
    runtime = distributed._jax
    make = runtime.get_distributed_runtime_client
    runtime.get_distributed_runtime_client = functools.partial(
        make, missed_heartbeat_callback=called
    )
    try:
        yield
    finally:
        runtime.get_distributed_runtime_client = make


def _catch_bad_cast(call: Callable[[], Any]) -> None:
    """Calls a function where C++ would end this process because of a `std::bad_cast`.

    jaxlib 0.10 does not call the client's callback: it cannot convert the status that it would give
    it, and this exception in a thread of its own ends the process.
    """
    try:
        runtime = ctypes.CDLL("libstdc++.so.6")
        set_terminate = runtime._ZSt13set_terminatePFvvE
        current_type = runtime.__getattr__("__cxa_current_exception_type")
    except (OSError, AttributeError):  # another C++ runtime, with a message of its own
        return
    handler = ctypes.CFUNCTYPE(None)
    set_terminate.restype = handler
    current_type.restype = ctypes.POINTER(ctypes.c_char_p)  # a std::type_info: its table, its name

    def terminate() -> None:
        found = current_type()
        if found and found[1] == b"St8bad_cast":
            call()
        before()

    _KEPT.append(ours := handler(terminate))
    before = set_terminate(ours)


_KEPT: list[Any] = []
"""Functions that C++ holds by their address alone."""


SIGNS_OF_LOSS = (
    # The runtime's own, of gloo on CPUs, of NCCL and RCCL on GPUs.
    "heartbeat", "UNAVAILABLE", "Gloo", "Connection reset", "Connection closed", "Socket",
    "remote process exited", "unhandled system error",
)  # fmt: skip
"""Parts of the messages with which a collective fails whose other side is gone."""
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
"""Codes of errors that a process has of its own."""


def lost_process(error: BaseException) -> str | None:
    """Reads what an error says of a process that has ended, None if it is about something else.

    Where the words of a device's error say neither, the runtime is given the time in which it
    finds a process lost and calls `lost` of `join`, whatever the devices are connected by.
    """
    if jax.process_count() == 1:
        return None
    text = str(error).strip()
    if any(sign in text for sign in SIGNS_OF_LOSS):
        return text.splitlines()[0][:160]
    if isinstance(error, jax.errors.JaxRuntimeError) and not text.startswith(OWN_FAULTS):
        time.sleep(HEARTBEAT_SECONDS + SLACK_SECONDS)
    return None


def is_primary() -> bool:
    """Tells whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Runs the block in the first process, then in the others; if it fails there, it fails in all.

    Args:
      name: Name of what is done, for messages.

    Raises:
      UserError: The first process failed, whose own message says why.
    """
    if jax.process_count() == 1:
        yield
        return
    failed = np.zeros((), np.int32)
    if is_primary():
        try:
            yield
        except BaseException:
            multihost_utils.broadcast_one_to_all(failed + 1)
            raise
        multihost_utils.broadcast_one_to_all(failed)
    else:
        if int(multihost_utils.broadcast_one_to_all(failed)):
            raise UserError(f"{name} failed in process 0, whose message says why")
        yield


def all_agree(value: bool) -> bool:
    """Tells whether `value` is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def of_primary(value: bool) -> bool:
    """Returns what `value` is in the first process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def largest(values: np.ndarray) -> np.ndarray:
    """Returns the largest value that any process has, for each element."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(axis=0)


def part_of_batch(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Finds which part of every global batch this process reads.

    Args:
      sharding: Sharding of the batch's first axis.
      batch_size: Size of the global batch.

    Returns:
      Number of the part, and of how many equal parts. Processes whose devices hold the same rows,
      such as those along the model axis, read the same part.

    Raises:
      UserError: This process's devices hold rows that do not lie together.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = {index[0].indices(batch_size)[:2] for index in places if index is not None}
    start, stop = min(a for a, _ in spans), max(b for _, b in spans)
    rows = stop - start
    if sum(b - a for a, b in spans) != rows or start % rows or batch_size % rows:
        raise UserError(
            f"the mesh {dict(sharding.mesh.shape)} gives process {jax.process_index()} rows that "
            "do not lie together; expected the model axis to divide the devices of a process, or "
            "the reverse"
        )
    return start // rows, batch_size // rows


def global_arrays(batch: PyTree, shardings: PyTree, spec: PyTree) -> PyTree:
    """Makes the global batch on the devices, of which `batch` is what this process has read."""
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    return jax.tree.map(
        lambda rows, sharding, whole: jax.make_array_from_process_local_data(
            sharding, rows, whole.shape
        ),
        batch,
        shardings,
        spec,
    )


def everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays that each process holds whole on all devices of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(leaf, whole), tree)


def local_copy(tree: PyTree) -> PyTree:
    """Copies arrays that lie over several processes, whole, to the first device of this one.

    With one process they stay where they are.
    """
    if jax.process_count() == 1:
        return tree

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                whole(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        sharding: Any = leaf.sharding
        replicated = NamedSharding(sharding.mesh, PartitionSpec())
        return jax.jit(_same, out_shardings=replicated)(leaf).addressable_data(0)

    return jax.tree.map(whole, tree)


def _same(x: jax.Array) -> jax.Array:
    return x
