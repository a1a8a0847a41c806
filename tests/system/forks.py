"""A Python that has its libraries imported already, for scripts that start it often.

`python -m tests.system.forks SOCKET PROGRAM [PID]` writes `PROGRAM`, to be called as `python` is,
and serves it: each call is a fork of this process, in the caller's directory and environment and
with its input and output. SIGINT and SIGTERM are handed on to the fork. What is imported beforehand
are libraries, never this repository. It serves until it is killed, with PID until that process has
ended. `Fork` calls the server from Python.
"""

import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = (
    "jax", "flax.linen", "optax", "orbax.checkpoint", "grain", "scipy.stats", "rich.table",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.manifold", "tensorboardX",
    "ml_collections.config_flags", "absl.app", "tensorflow_datasets", "chex", "dm_pix",
)  # fmt: skip
WATCH = 2.0  # seconds after which a server looks whether it is wanted still
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
if sys.argv[1:2] not in (["-m"], ["-c"], ["-"]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
def hand_on(number, _):
    try:
        os.kill(fork, number)
    except ProcessLookupError:
        pass
stops = signal.SIGINT, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, stops)
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [call], [0, 1, 2])
    fork = int(server.recv(16))
    for number in stops:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    code = int(server.recv(16) or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


def serve(address: str, program: Path, wanted_by: int | None) -> None:
    """Answers calls until nobody wants it; returns in forks alone, of which each is one call."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every fork would walk, and so copy, all that is imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        while True:
            while not select.select([server], [], [], WATCH)[0]:
                if wanted_by and not alive(wanted_by):
                    os._exit(0)
            connection, _ = server.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    arguments, directory, environment = json.loads(message)
    child = os.fork()
    if child:
        connection.send(b"%16d" % child)
        status = os.waitpid(child, 0)[1]
        connection.send(b"%16d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(program)
    run(arguments)


def alive(process: int) -> bool:
    """Whether a process has not ended."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def run(arguments: list[str]) -> None:
    """Does what Python does with `-m MODULE`, `-c TEXT` or `-`."""
    kind, rest = arguments[0], arguments[1:]
    sys.path[0] = os.getcwd()
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        text = rest.pop(0) if kind == "-c" else sys.stdin.read()
        sys.argv = [kind, *rest]
        exec(compile(text, kind, "exec"), {"__name__": "__main__"})


class Fork:
    """A call of a server, with what is used here of a `subprocess.Popen`.

    Args:
      address: Socket of the server.
      arguments: Arguments of Python, of which the first is `-m`, `-c` or `-`.
      directory: Working directory.
      environment: All variables of the process.
    """

    def __init__(
        self, address: str, arguments: list[str], *, directory: Path, environment: Mapping[str, str]
    ):
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(address)
        call = json.dumps([arguments, str(directory), dict(environment)]).encode()
        nothing = os.open(os.devnull, os.O_RDONLY)
        reading, writing = os.pipe()
        socket.send_fds(self._server, [call], [nothing, writing, writing])
        os.close(nothing)
        os.close(writing)
        self.stdout = os.fdopen(reading)
        self.pid = int(self._server.recv(16))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.returncode = int(self._server.recv(16) or 1)
            self._server.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end; the exit code."""
        if self.returncode is None and not select.select([self._server], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.poll()

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Waits for its end, or ends it where that takes longer; what it printed."""
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        try:
            with self.stdout:
                text = self.stdout.read()
            self.wait()
        finally:
            guard.cancel()
        return text, None

    def send_signal(self, signum: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def free_address() -> str:
    """An address of this machine at which processes may find one another."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def last_lists(processes: list[Fork]) -> list:
    """Waits until all have ended well; the last list that each printed on a line, as JSON."""
    said = []
    for process in processes:
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0, printed[-3000:]
        said.append(json.loads(re.findall(r"^\[.*\]$", printed, re.MULTILINE)[-1]))
    return said


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None)
