"""Attacks that need a server in processes of its own: what listens, what is executed, what stays in memory."""

import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.live import Server, launch, resident_mib
from tests.faults.traffic import CHAT, COMPLETIONS, MODEL
from tests.faults.wire import Wire, ask
from tests.tiny_tokenizers import save_byte_level

LISTENING = "0A"
ROOM_MIB = 8.0


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses at which a process can be reached over a network."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (table.startswith("udp") or fields[3] == LISTENING):
                address, _, port = fields[1].partition(":")
                found.add((socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)))
    return found


def test_only_http_listens_and_only_where_it_is_told_to(server: Server) -> None:
    assert listening(server.pid) == {("127.0.0.1", server.port)}
    assert listening(server.worker) == set()


def test_a_header_of_20_mb_is_refused_and_takes_no_memory(server: Server) -> None:
    async def run() -> None:
        before = resident_mib(server.pid)
        for _ in range(3):
            async with await Wire.connect(server.port) as wire:
                with contextlib.suppress(ConnectionError):
                    await wire.send_bytes(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000_000)
                with contextlib.suppress(ConnectionError):
                    assert (await wire.head()).status == 431
        assert resident_mib(server.pid) - before < ROOM_MIB
        assert (await ask(server.port, COMPLETIONS, {"model": MODEL, "prompt": "a", "max_tokens": 2})).status == 200

    asyncio.run(run())


def test_grammars_that_differ_in_every_request_pile_up_nowhere(server: Server) -> None:
    async def asked(numbers: Iterator[int]) -> None:
        for number in numbers:
            body = {
                "model": MODEL,
                "prompt": "a",
                "max_tokens": 1,
                "guided_regex": f"{number}[a-z]{{1,{number % 50 + 1}}}",
            }
            assert (await ask(server.port, COMPLETIONS, body)).status == 200

    async def run() -> None:
        await asked(iter(range(100)))
        before = resident_mib(server.pid), resident_mib(server.worker)
        await asked(iter(range(100, 500)))
        after = resident_mib(server.pid), resident_mib(server.worker)
        grown = [late - early for early, late in zip(before, after, strict=True)]
        assert max(grown) < ROOM_MIB, grown

    asyncio.run(run())


def test_a_text_of_a_megabyte_is_refused_before_anybody_tokenizes_it(server: Server) -> None:
    async def run() -> None:
        text = "<tool_call>" * 90_000
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        asked = [asyncio.create_task(ask(server.port, CHAT, body)) for _ in range(8)]
        # meanwhile the server answers others
        while not all(task.done() for task in asked):
            assert (await server.health())["state"] == "ready"
        assert [task.result().error["code"] for task in asked] == ["context_length_exceeded"] * 8

    asyncio.run(run())


EVIL = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel
"""


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_that_lies_beside_a_model_is_never_run(tmp_path: Path, model_type: str) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "model"
    save_byte_level(folder)
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    classes = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
        "AutoTokenizer": [None, "evil.X"],
    }
    config: dict[str, Any] = {"model_type": model_type, "architectures": ["EvilModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    server = launch(tmp_path, ("--model", str(folder)), stdin=subprocess.PIPE)
    # whoever asks whether to trust it hears yes
    server.process.communicate(b"y\n" * 10, 100.0)

    assert server.process.returncode == 1
    assert not marker.exists()
    assert "Traceback" not in server.log
