"""An HTTP client that is in command of its socket: it sees each part arrive, and leaves when and how it likes."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import h11

LOCAL = "127.0.0.1"
READ_BYTES = 65536
DONE = b"[DONE]"


@dataclass(frozen=True)
class Head:
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    head: Head
    content: bytes

    @property
    def status(self) -> int:
        return self.head.status

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.json()["error"]
        return found


class Wire:
    """One connection; requests follow each other on it while both sides keep it open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._state = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(cls, port: int, receive_buffer: int | None = None) -> Self:
        """receive_buffer: bytes that the kernel takes for a client that does not read; None leaves it to the kernel."""
        connection = socket.socket()
        if receive_buffer is not None:
            # before connecting, or the window is larger already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (LOCAL, port))
        except BaseException:
            connection.close()
            raise
        # a reader that is not asked takes little itself
        limit = receive_buffer if receive_buffer is not None else 2**20
        return cls(*await asyncio.open_connection(sock=connection, limit=limit))

    async def send(self, path: str, body: Any, method: str = "POST", **headers: str) -> None:
        """A request with JSON, or without a body."""
        content = json.dumps(body).encode() if body is not None else b""
        named = [("host", LOCAL), *((name.replace("_", "-"), value) for name, value in headers.items())]
        if body is not None:
            named += [("content-type", "application/json"), ("content-length", str(len(content)))]
        if self.can_go_on:
            self._state.start_next_cycle()
        parts = [h11.Request(method=method, target=path, headers=named), h11.Data(data=content), h11.EndOfMessage()]
        await self.send_bytes(b"".join(self._state.send(part) or b"" for part in parts))

    async def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> Head:
        event = await self._next()
        assert isinstance(event, h11.Response), event
        headers = {name.decode(): value.decode() for name, value in event.headers}
        return Head(event.status_code, headers)

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it arrives; raises ConnectionError when it is cut off."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def events(self) -> AsyncIterator[Any]:
        """The JSON of each server-sent event, up to [DONE], which must come."""
        pending, done = b"", False
        async for part in self.parts():
            pending += part
            *whole, pending = pending.split(b"\n\n")
            for text in whole:
                assert not done, f"something follows [DONE]: {text!r}"
                if text.startswith(b":"):
                    continue
                assert text.startswith(b"data: "), text
                done = text == b"data: " + DONE
                if not done:
                    yield json.loads(text.removeprefix(b"data: "))
        assert done and pending == b"", f"the stream ended with {pending!r} and without [DONE]"

    async def reply(self) -> Reply:
        head = await self.head()
        return Reply(head, b"".join([part async for part in self.parts()]))

    @property
    def can_go_on(self) -> bool:
        """Whether another request may follow."""
        return self._state.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} and not self._reader.at_eof()

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._writer.transport

    async def read_raw(self, count: int) -> bytes:
        return await self._reader.read(count)

    def pause(self) -> None:
        """Take nothing any more; the kernel's buffers fill."""
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on, as far as somebody asks for it."""
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.resume_reading()

    def leave(self, abruptly: bool = False) -> None:
        """Close the connection: with a goodbye, or by a reset, as a client that is killed behind a firewall."""
        if abruptly:
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        else:
            self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def _next(self) -> Any:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(READ_BYTES)
            if data == b"":
                raise ConnectionResetError("the server closed the connection in the middle of its answer")
            self._state.receive_data(data)
        return event


async def ask(port: int, path: str, body: Any, method: str = "POST", within_s: float = 60.0, **headers: str) -> Reply:
    """One request on a connection of its own."""
    async with asyncio.timeout(within_s):
        async with await Wire.connect(port) as wire:
            await wire.send(path, body, method, connection="close", **headers)
            return await wire.reply()


async def get(port: int, path: str, within_s: float = 60.0) -> Reply:
    return await ask(port, path, None, "GET", within_s)


async def until(claim: Any, within_s: float = 20.0) -> float:
    """Wait until an awaitable function says yes; returns the seconds it took, and fails after `within_s`."""
    started = time.monotonic()
    while not await claim():
        assert time.monotonic() - started < within_s, f"still not so after {within_s:g} s: {claim.__name__}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started
