"""The channel between the coordinator and the processes that it measures.

A Unix socket in a private directory, on which each measured process connects: unlike an inherited
descriptor it survives every launcher that closes descriptors (torchrun, sudo, subprocess), and a
forked trial gets a connection of its own by connecting, as its host did. It never listens on a
network. Messages are JSON objects, so that nothing received is ever executed.
"""

from __future__ import annotations

import json
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from autotune.errors import AutotuneError
from autotune.ipc.private_directory import PrivateDirectory

# Holds START:PATH in the environment of measured processes: the socket, and which start this is.
CHANNEL_VARIABLE = "AUTOTUNE_CHANNEL"
# A message holds at most the end of a traceback and some hundred blocks.
MAX_MESSAGE_BYTES = 1 << 22

Message = dict[str, Any]


class ChannelClosedError(AutotuneError):
    """The other side is gone, or does not speak the protocol."""


class Channel:
    """One connection, on which both sides send JSON objects."""

    def __init__(self, connection: Connection[bytes, bytes]) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, path: str) -> Channel:
        """Connect to the coordinator that listens at `path`.

        Raises:
            ChannelClosedError: Nobody listens there.
        """
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(path)
        except OSError as error:
            client.close()
            raise ChannelClosedError(f"nobody listens at {path}: {error.strerror}") from error
        return cls(Connection(client.detach()))

    def send(self, **message: Any) -> None:  # noqa: ANN401
        """Send one message.

        Raises:
            ChannelClosedError: The other side is gone.
        """
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise ChannelClosedError("the other side is gone") from error

    def receive(self, timeout_s: float | None = None) -> Message:
        """Block, without using any CPU, until a message is there.

        Raises:
            ChannelClosedError: The other side is gone, sent something else, or nothing in time.
        """
        if timeout_s is not None and not self.poll(timeout_s):
            raise ChannelClosedError(f"the other side sent nothing within {timeout_s:.0f} s")
        try:
            message = json.loads(self._connection.recv_bytes(MAX_MESSAGE_BYTES))
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise ChannelClosedError("the other side is gone") from error
        if not isinstance(message, dict):
            raise ChannelClosedError(f"the other side sent {type(message).__name__}, no object")
        return message

    def poll(self, timeout_s: float) -> bool:
        """Whether a message, or the end of the connection, is there within `timeout_s`."""
        try:
            return self._connection.poll(max(timeout_s, 0.0))
        except OSError:
            return True

    def close(self) -> None:
        """Close this side."""
        self._connection.close()


class Listener:
    """The coordinator's end: a socket in a directory that only this user can enter."""

    def __init__(self) -> None:
        self._directory = PrivateDirectory()
        self.path = str(self._directory.path / "channel")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen()

    @property
    def directory(self) -> Path:
        """The private directory; what trials print is kept there while they run."""
        return self._directory.path

    @property
    def temporary(self) -> Path:
        """Where trials put their temporary files."""
        return self._directory.temporary

    @property
    def places(self) -> tuple[Path, ...]:
        """All directories that go with the run."""
        return self._directory.places

    def accept(self, timeout_s: float) -> Channel | None:
        """The next connection, or None if none comes within `timeout_s`."""
        self._socket.settimeout(max(timeout_s, 0.001))
        try:
            connected, _ = self._socket.accept()
        except TimeoutError:
            return None
        connected.setblocking(True)
        return Channel(Connection(connected.detach()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._directory.remove()
