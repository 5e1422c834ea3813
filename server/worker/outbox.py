"""The server's end of the pipe to a worker, which may be stopped or hang: nobody waits until it reads."""

import asyncio
import os
import socket
import struct
from multiprocessing.connection import Connection

__all__ = ["Outbox"]


class Outbox:
    """Sends messages that a Connection's recv_bytes receives; what finds no room leaves when there is some.

    A prompt may be larger than what a pipe holds, and the event loop that waited for its reader would find nobody
    hanging any more.
    """

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """The connection stays its owner's, and must be a duplex pipe's; the loop sends the rest."""
        self._loop = loop
        # its own number, since the loop may watch it only as long as nobody else closes it
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._unsent = bytearray()

    def send(self, data: bytes) -> bool:
        """Whether the message is under way; False once the other end is gone."""
        # as multiprocessing frames it
        framed = struct.pack("!i", len(data)) + data
        if self._unsent:
            self._unsent += framed
            return True
        try:
            sent = self._send(framed)
        except OSError:
            return False
        if sent < len(framed):
            self._unsent += framed[sent:]
            self._loop.add_writer(self._socket, self._go_on)
        return True

    def close(self) -> None:
        """Let go of the pipe, and of what has not left."""
        self._stop()
        self._socket.close()

    def _send(self, data: bytes | bytearray) -> int:
        # not by setblocking: that would hold for the thread that reads the pipe as well
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _go_on(self) -> None:
        try:
            del self._unsent[: self._send(self._unsent)]
        except OSError:
            # the other end is gone, which its owner hears by itself
            self._unsent.clear()
        if not self._unsent:
            self._stop()

    def _stop(self) -> None:
        self._unsent.clear()
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket)
