"""A Python that has its libraries imported already, for scripts that start it often.

`python -m tests.system.forks SOCKET PROGRAM` writes `PROGRAM`, to be called as `python` is, and
serves it: each call is a fork of this process, in the caller's directory and environment and with
its input and output. What is imported beforehand are libraries, never this repository.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

LIBRARIES = (
    "jax", "flax.linen", "optax", "orbax.checkpoint", "grain", "scipy.stats", "rich.table",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.manifold", "tensorboardX",
    "ml_collections.config_flags", "absl.app", "tensorflow_datasets",
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] not in (["-m"], ["-c"], ["-"]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [call], [0, 1, 2])
    code = int(server.recv(16) or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


def serve(address: str, program: Path) -> None:
    """Answers calls until it is killed; returns in forks alone, of which each is one call."""
    for name in LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        while True:
            connection, _ = server.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    arguments, directory, environment = json.loads(message)
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
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


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
