import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Message

from medusa_core.errors import EngineError
from server.streaming import let_streams_finish, stream_response


async def chunks_then(error: Exception | None) -> AsyncIterator[dict[str, Any]]:
    yield {"n": 1, "text": "Grüße\n"}
    if error is not None:
        raise error
    yield {"n": 2}


def served(chunks: AsyncIterator[dict[str, Any]], leaves_after: int | None = None) -> tuple[list[bytes], int]:
    """Bodies sent, and how often the end was told; the client leaves after so many of them."""
    let_streams_finish()
    bodies: list[bytes] = []
    ends = 0
    leaves = asyncio.Event()

    def on_end() -> None:
        nonlocal ends
        ends += 1

    async def receive() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            bodies.append(message["body"])
            if len(bodies) == leaves_after:
                leaves.set()

    async def serve() -> None:
        scope = {"type": "http", "method": "POST"}
        await asyncio.wait_for(stream_response(chunks, on_end, {"x-a": "b"})(scope, receive, send), 5)

    asyncio.run(serve())
    return bodies, ends


def test_every_chunk_is_one_event_and_done_is_last() -> None:
    bodies, ends = served(chunks_then(None))

    assert bodies == ['data: {"n":1,"text":"Grüße\\n"}\n\n'.encode(), b'data: {"n":2}\n\n', b"data: [DONE]\n\n"]
    assert ends == 1


def test_an_error_between_chunks_is_an_event_and_done_is_last() -> None:
    bodies, ends = served(chunks_then(EngineError("no")))

    assert bodies[1] == b'data: {"error":{"message":"no","type":"server_error","param":null,"code":null}}\n\n'
    assert bodies[2:] == [b"data: [DONE]\n\n"]
    assert ends == 1


def test_the_end_is_told_when_the_client_leaves() -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield {}
            await asyncio.sleep(0.001)

    bodies, ends = served(endless(), leaves_after=3)

    assert len(bodies) <= 5
    assert b"data: [DONE]\n\n" not in bodies
    assert ends == 1
