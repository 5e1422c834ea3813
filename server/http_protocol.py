"""The connection below the application: what uvicorn and h11 leave without a limit gets one here."""

import asyncio
import contextlib
import http
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from medusa_core.errors import MedusaError
from server.errors import HeadersTooLarge, MalformedHttp, RequestTooSlow, TooManyConnections, error_response
from server.logs import bind

__all__ = ["MAX_HEADER_BYTES", "ConnectionLimits", "GuardedProtocol"]

# Target, names and values together, and whatever of an unfinished header h11 may hold back.
MAX_HEADER_BYTES = 16384
# A chunk costs h11 15 us however small it is; beyond this many they must hold so many bytes on average.
FREE_CHUNKS, LEAST_CHUNK_BYTES = 1024, 64
# How long a client that was refused may go on sending; closed at once, it would see a reset and no answer.
LINGER_S = 2.0
# A reader must take this share of what waited for it in every send timeout, and so many bytes at least.
LEAST_SENT_SHARE, LEAST_SENT_BYTES = 10, 32768


@dataclass(frozen=True)
class ConnectionLimits:
    """What one client's connection may take of the server.

    header_timeout_s: from a request's first byte to the end of its header; the first request's from the connection.
    send_timeout_s:   for a part of an answer to be read, see LEAST_SENT_SHARE.
    max_connections:  at one time.
    """

    header_timeout_s: float
    send_timeout_s: float
    max_connections: int


class _StrictConnection(h11.Connection):
    """h11, without what two readers of the same bytes may understand in two ways.

    fault: why the client was refused, once it was.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.fault: MedusaError | None = None
        self._chunks = 0
        self._chunked_bytes = 0

    def next_event(self) -> Any:
        """The next event. Raises RemoteProtocolError, with `fault` set."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            # what follows quotes the client, perhaps a key
            reason = str(error).partition(": bytearray")[0]
            is_long = error.error_status_hint == http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.fault = HeadersTooLarge(MAX_HEADER_BYTES) if is_long else MalformedHttp(reason)
            raise
        if isinstance(event, h11.Request):
            self.fault = _fault_of(event)
            self._chunks = self._chunked_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._chunked_bytes += len(event.data)
            if self._chunks > FREE_CHUNKS and self._chunked_bytes < self._chunks * LEAST_CHUNK_BYTES:
                self.fault = MalformedHttp(f"its body comes in chunks of less than {LEAST_CHUNK_BYTES} bytes")
        if self.fault is not None:
            raise h11.RemoteProtocolError(str(self.fault))
        return event


def _fault_of(request: h11.Request) -> MedusaError | None:
    """What is wrong with a header that h11 takes."""
    names = {name for name, _ in request.headers}
    if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > MAX_HEADER_BYTES:
        # h11 counts only what it has to wait for, and most headers arrive whole
        return HeadersTooLarge(MAX_HEADER_BYTES)
    if request.http_version not in (b"1.1", b"1.0"):
        return MalformedHttp("this server speaks HTTP/1.1 only")
    if b"transfer-encoding" in names and b"content-length" in names:
        # a proxy may go by the one and this server by the other: the rest would be somebody else's request
        return MalformedHttp("it has both a Content-Length and a Transfer-Encoding")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        return MalformedHttp("HTTP/1.0 knows no Transfer-Encoding")
    return None


def _on_the_wire(response: Response, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A whole response, for a client that never got as far as the application."""
    status = http.HTTPStatus(response.status_code)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in (*headers, *response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


class GuardedProtocol(H11Protocol):
    """uvicorn's h11 protocol with deadlines for headers and for readers, and with refusals in OpenAI's shape.

    limits:     what a connection may take.
    on_refused: told of every request that is refused here.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        on_refused: Callable[[MedusaError], None],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._on_refused = on_refused
        self.conn = self._strict = _StrictConnection()
        self._is_refused = False
        self._reading: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._least_sent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._answer(TooManyConnections(self._limits.max_connections))
            transport.close()
            return
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_reading_timer()
        self._stop_sending_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of what a refused client still sends."""
        if self._is_refused:
            return
        # asyncio lets the answer to one request, and all that is bound to it, read the next one
        bind()
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        """An answer has been given to the transport."""
        super().on_response_complete()
        self._watch_reading()
        self._watch_closing()

    def shutdown(self) -> None:
        """The server ends; a client that was refused is gone in a moment, and h11 has no goodbye for it."""
        if not self._is_refused:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        super().timeout_keep_alive_handler()
        self._watch_closing()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the connection raises; the answer is that of the fault."""
        self._refuse(self._strict.fault if self._strict.fault is not None else MalformedHttp(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: some clients offer HTTP/2 with every request, and are answered all the same."""

    def pause_writing(self) -> None:
        """More is to be sent than the client has taken."""
        super().pause_writing()
        self._start_sending_timer()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_sending_timer()

    def _watch_reading(self) -> None:
        """Arm the deadline while a header is under way, or the rest of a body whose request is answered already."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        is_idle = self.timeout_keep_alive_task is not None
        is_header = theirs is h11.IDLE and (not is_idle or self.conn.trailing_data[0] != b"")
        is_rest = theirs is h11.SEND_BODY and ours is h11.DONE
        if self._is_refused or self.transport.is_closing():
            return
        if not is_header and not is_rest:
            self._stop_reading_timer()
        elif self._reading is None:
            self._reading = self.loop.call_later(self._limits.header_timeout_s, self._on_late)

    def _on_late(self) -> None:
        """The deadline has passed: half a request gets an answer, a connection without one is just closed."""
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] != b"":
            self._refuse(RequestTooSlow("header", self._limits.header_timeout_s))
        elif not self.transport.is_closing():
            self.transport.close()
            self._watch_closing()

    def _refuse(self, error: MedusaError) -> None:
        """Answer and close; what the client still sends is read away meanwhile, so that it can read why."""
        if self._is_refused or self.transport.is_closing():
            return
        self._stop_reading_timer()
        is_begun = False
        if self.cycle is not None and not self.cycle.response_complete:
            is_begun = self.cycle.response_started
            # the application that waits for the rest hears that nobody is there
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if is_begun:
            self.transport.abort()
            return
        self._answer(error)
        with contextlib.suppress(OSError):  # a client that has just gone needs no goodbye
            self.transport.write_eof()
        self.flow.resume_reading()
        self._reading = self.loop.call_later(LINGER_S, self.transport.abort)

    def _answer(self, error: MedusaError) -> None:
        self._is_refused = True
        request_id = uuid.uuid4().hex
        bind(request_id=request_id)
        self._on_refused(error)
        headers = {"connection": "close", "x-request-id": request_id}
        self.transport.write(_on_the_wire(error_response(error, headers), self.server_state.default_headers))

    def _watch_closing(self) -> None:
        """A transport that closes waits for its reader, and would do so for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size() > 0:
            self._start_sending_timer()

    def _start_sending_timer(self) -> None:
        if self._sending is not None:
            return
        self._unsent = self.transport.get_write_buffer_size()
        self._least_sent = max(LEAST_SENT_BYTES, self._unsent // LEAST_SENT_SHARE)
        self._sending = self.loop.call_later(self._limits.send_timeout_s, self._check_sent)

    def _check_sent(self) -> None:
        """End a connection whose client reads nothing, or next to nothing."""
        unsent = self.transport.get_write_buffer_size()
        if unsent > self._unsent - self._least_sent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._sending = self.loop.call_later(self._limits.send_timeout_s, self._check_sent)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_sending_timer(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
