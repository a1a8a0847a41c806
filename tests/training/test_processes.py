"""Errors of several processes: which of them say that another one has ended."""

import jax
import pytest

from rml.training import processes

# As gloo, NCCL and the coordination service write them.
LOST = (
    "FAILED_PRECONDITION: Gloo all-reduce failed: [../gloo/pair.cc:534] Connection closed by peer",
    "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network "
    "error. Last NCCL warning(error) log entry (may be unrelated) ''.",
    "INTERNAL: NCCL operation ncclCommInitRankConfig(...) failed: unhandled system error (run with "
    "NCCL_DEBUG=INFO for details).",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats): task:1",
)
OWN = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes.",
    "INVALID_ARGUMENT: Executable expected shape f32[2]",
)


@pytest.fixture
def waited(monkeypatch):
    """Two processes, and the times that are waited for the runtime."""
    times: list[float] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.time, "sleep", times.append)
    return times


@pytest.mark.parametrize("message", LOST)
def test_the_end_of_another_process_is_recognised(waited, message):
    assert processes.lost_process(jax.errors.JaxRuntimeError(message)) == message[:160]
    assert not waited


@pytest.mark.parametrize("message", OWN)
def test_a_fault_of_ones_own_is_not_another_processs_end(waited, message):
    assert processes.lost_process(jax.errors.JaxRuntimeError(message)) is None
    assert processes.lost_process(RuntimeError("INTERNAL: of something else")) is None
    assert not waited


def test_an_error_that_does_not_say_leaves_the_runtime_the_time_to_tell(waited):
    unknown = jax.errors.JaxRuntimeError("INTERNAL: collective operation failed on device 3")
    assert processes.lost_process(unknown) is None
    assert waited == [pytest.approx(processes.HEARTBEAT_SECONDS, abs=30)]
    assert waited[0] > processes.HEARTBEAT_SECONDS


def test_one_process_loses_none():
    assert processes.lost_process(jax.errors.JaxRuntimeError(LOST[0])) is None
