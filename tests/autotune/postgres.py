"""A PostgreSQL server of the tests' own."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def program(name):
    """Where one of PostgreSQL's programs is; None where it is not installed."""
    found = [shutil.which(name), *(str(place / name) for place in _INSTALLED)]
    return next((path for path in found if path and Path(path).exists()), None)


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs: its URL, and what restarts it."""

    url: str
    restart: Callable[[], None]


@contextlib.contextmanager
def server(folder):
    """A server with its data in a new folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = Path(folder) / "data"
    data.mkdir(parents=True)
    # It refuses to run as root.
    prefix = ()
    if os.geteuid() == 0:
        prefix = ("runuser", "-u", "postgres", "--")
        for path in (data, *data.parents):
            if path.owner() == "root" and path not in (Path("/"), Path("/tmp")):
                path.chmod(0o755)
        shutil.chown(data, "postgres")
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run((*prefix, program("initdb"), "-A", "trust", "-U", "autotune", data), **run)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = (*prefix, program("pg_ctl"), "-D", data, "-w", "-l", data / "log")
    subprocess.run((*control, "-o", options, "start"), **run)

    def restart():
        subprocess.run((*control, "-m", "fast", "-o", options, "restart"), **run)

    try:
        yield Server(
            url=f"postgresql+psycopg://autotune@127.0.0.1:{port}/postgres", restart=restart
        )
    finally:
        # An immediate stop would leave segments in /dev/shm.
        subprocess.run((*control, "-m", "fast", "stop"), **{**run, "check": False})
