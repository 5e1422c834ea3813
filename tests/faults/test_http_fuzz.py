"""Bytes that are nearly HTTP, thousands of them: no failure of the server's, no hang, nothing left behind.

The engine is the fake one, so that the time goes into HTTP.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.live import open_files, parsed, resident_mib, threads
from tests.faults.wire import get
from tests.live_server import clean_environment, free_port, wait_until_ready
from tests.server.running import MODEL
from tests.tiny_tokenizers import save_byte_level

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "served_model_name": MODEL,
    "header_timeout_s": "0.5",
    "body_timeout_s": "0.5",
    "send_timeout_s": "1",
    "keep_alive_s": "1",
    "max_connections": "64",
    "shutdown_timeout_s": "20",
}
CLIENTS = 24
# Each round sends so many requests; the first one fills whatever is filled once.
WARM_UP, ROUND = 500, 2000
# Far beyond all deadlines together, on a machine that does other things too.
PATIENCE_S = 30.0
STATUS = re.compile(rb"(?:^|\r\n\r\n|\})HTTP/1\.1 ([0-9]{3}) ")

JSON: dict[str, object] = {"model": MODEL, "prompt": "hello world", "max_tokens": 8}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
DUST = [
    b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%00", b"%", b"\xff\xfe", b"\x80", b"{", b"}", b"[",
    b'"', b"\\ud800", b"\\", b"HTTP/1.1", b"0\r\n\r\n", b"ffffffffffffffffffff\r\n", b";", b",", b"/../", b"//", b"?",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 7\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Host: y\r\n", b"-1", b"NaN", b"1e999",
    b"a" * 20_000,
]  # fmt: skip


def plain(method: str, target: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def ending(chance: random.Random) -> list[str]:
    """Half of the requests ask the server to close behind its answer."""
    return ["Connection: close"] if chance.random() < 0.5 else []


def with_body(target: str, body: object, chance: random.Random) -> bytes:
    content = json.dumps(body).encode()
    headers = ["Content-Type: application/json", *ending(chance)]
    if chance.random() < 0.5:
        return plain("POST", target, *headers, f"Content-Length: {len(content)}") + content
    size = chance.choice([1, 7, 64, 4096])
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    chunks = b"".join(b"%x\r\n" % len(piece) + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
    return plain("POST", target, *headers, "Transfer-Encoding: chunked") + chunks


def good(chance: random.Random) -> bytes:
    """A request that would be answered as it is."""
    kind = chance.randrange(6)
    if kind == 0:
        method = chance.choice(["GET", "HEAD", "OPTIONS"])
        return plain(method, chance.choice(["/health", "/v1/models", "/ready", "/docs"]), *ending(chance))
    if kind == 1:
        return with_body("/tokenize", {"prompt": "hello"}, chance)
    if kind == 2:
        return with_body("/v1/completions", {**JSON, "n": chance.choice([1, 3]), "logprobs": 2}, chance)
    return with_body("/v1/chat/completions", {**CHAT, "stream": kind % 2 == 0}, chance)


def cut(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + chance.choice([1, 1, 2, 8, 40]))


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def removed(data: bytes, chance: random.Random) -> bytes:
    start, end = cut(data, chance)
    return data[:start] + data[end:]


def repeated(data: bytes, chance: random.Random) -> bytes:
    start, end = cut(data, chance)
    return data[:end] + data[start:end] * chance.choice([1, 2, 50]) + data[end:]


def dusted(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.choice(DUST) + data[at:]


def shortened(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(1, len(data) + 1)]


def random_bytes(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([1, 16, 300, 20_000]))


def pipelined(data: bytes, chance: random.Random) -> bytes:
    return data + good(chance) * chance.choice([1, 2, 20])


Mutation = Callable[[bytes, random.Random], bytes]
MUTATIONS: list[Mutation] = [flipped, removed, repeated, dusted, shortened, random_bytes, pipelined]


def nearly_http(chance: random.Random) -> bytes:
    data = good(chance)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 6])):
        data = chance.choice(MUTATIONS)(data, chance) if data else chance.randbytes(1)
    return data


@dataclass
class Seen:
    """What came of all of it.

    failed: statuses of 500 and above, with the request.
    hung:   requests after which the server kept its connection open for too long.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    failed: list[tuple[int, bytes]] = field(default_factory=list)
    hung: list[bytes] = field(default_factory=list)


async def one(port: int, chance: random.Random, seen: Seen) -> None:
    """Send one thing in one way and read until the server closes, or leave before."""
    data = nearly_http(chance)
    pieces = [data]
    if chance.random() < 0.3:
        at = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([1, 3, 12])))
        pieces = [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]
    way = chance.random()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001 if len(pieces) > 1 else 0)
            if way < 0.1:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if way < 0.2:
                return
            if way < 0.5:
                with contextlib.suppress(OSError):  # the server was quicker
                    writer.write_eof()
            received = await asyncio.wait_for(reader.read(-1), PATIENCE_S)
            for status in map(int, STATUS.findall(received)):
                seen.statuses[status] = seen.statuses.get(status, 0) + 1
                if status >= 500:
                    seen.failed.append((status, data[:2000]))
    except TimeoutError:
        seen.hung.append(data[:2000])
    finally:
        writer.transport.abort() if way < 0.1 else writer.close()


async def fuzz(port: int, seed: int, count: int) -> Seen:
    seen = Seen()
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await one(port, random.Random(seed * 1_000_000 + number), seen)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return seen


@dataclass(frozen=True)
class Target:
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    port, log = free_port(), tmp_path / "server.log"
    save_byte_level(tmp_path / "tiny")
    words = [f"{name}={value}" for name, value in {**OPTIONS, "model": tmp_path / "tiny", "port": port}.items()]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.serve_fake", *words],
            cwd=ROOT,
            env=clean_environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}")
            yield Target(port, process, log)
        except BaseException:
            print(log.read_text(errors="replace")[-10_000:])
            raise
        finally:
            process.kill()
            process.wait()


async def metrics(port: int) -> dict[str, float]:
    return parsed((await get(port, "/metrics")).content.decode())


async def settled(target: Target, files: int) -> dict[str, float]:
    """Wait until every connection is closed and nothing runs; returns the metrics then."""
    for _ in range(400):
        now = await metrics(target.port)
        if now["medusa_num_requests_running"] == now["medusa_num_requests_waiting"] == 0:
            if open_files(target.process.pid) <= files:
                return now
        await asyncio.sleep(0.05)
    raise AssertionError(f"{open_files(target.process.pid)} files are open, {files} were before")


def test_bytes_that_are_nearly_http_break_nothing_and_leave_nothing_behind(target: Target) -> None:
    async def run() -> None:
        files, before = open_files(target.process.pid), await metrics(target.port)
        first = await fuzz(target.port, seed=1, count=WARM_UP)
        await settled(target, files)
        memory, held = resident_mib(target.process.pid), threads(target.process.pid)
        second = await fuzz(target.port, seed=2, count=ROUND)
        after = await settled(target, files)

        for seen in (first, second):
            assert seen.failed == []
            assert seen.hung == []
        print(f"statuses of {ROUND} requests: {dict(sorted(second.statuses.items()))}")
        # it was HTTP often enough to be answered, and wrong in every way there is
        assert {200, 400, 404, 405, 408, 431} <= second.statuses.keys()
        grew = {name for name, value in after.items() if value > before.get(name, 0)}
        assert [name for name in grew if "_http_requests_total" in name and "status=5" in name] == []
        assert after["medusa_worker_restarts_total reason=crash"] == 0
        assert resident_mib(target.process.pid) - memory < 16
        assert threads(target.process.pid) <= held + 2
        reply = await get(target.port, "/v1/models")
        assert reply.status == 200

    asyncio.run(run())
    # a task that hangs would be cancelled at the end, and its server would take its whole time to end
    target.process.send_signal(signal.SIGTERM)
    target.process.wait(PATIENCE_S)
    log = target.log.read_text(errors="replace")
    assert not re.search(r"Cancel \d+ running task", log)
    assert "Traceback" not in log
    assert "never retrieved" not in log
