import asyncio
import multiprocessing
import threading

from server.worker.outbox import Outbox

# More than a pipe of any system holds.
LARGE = bytes(range(256)) * 20_000
PATIENCE_S = 60


def test_a_message_arrives_as_it_was_sent() -> None:
    async def scene() -> list[bytes]:
        ours, theirs = multiprocessing.Pipe()
        outbox = Outbox(ours, asyncio.get_running_loop())
        with ours, theirs:
            assert outbox.send(b"") and outbox.send(b"hello")
            heard = [theirs.recv_bytes(), theirs.recv_bytes()]
            outbox.close()
        return heard

    assert asyncio.run(scene()) == [b"", b"hello"]


def test_nobody_waits_for_a_reader_and_he_gets_everything_in_order_when_he_reads() -> None:
    sent = [LARGE, b"small", LARGE[::-1], b"last"]
    heard: list[bytes] = []

    async def scene() -> None:
        ours, theirs = multiprocessing.Pipe()
        outbox = Outbox(ours, asyncio.get_running_loop())
        with ours, theirs:
            assert all(outbox.send(data) for data in sent)
            reader = threading.Thread(target=lambda: heard.extend(theirs.recv_bytes() for _ in sent), daemon=True)
            reader.start()
            async with asyncio.timeout(PATIENCE_S):
                while len(heard) < len(sent):
                    await asyncio.sleep(0.001)
            assert outbox.send(b"one more") and theirs.recv_bytes() == b"one more"
            outbox.close()

    asyncio.run(scene())

    assert heard == sent


def test_a_reader_who_is_gone_is_told_of() -> None:
    async def scene() -> list[bool]:
        ours, theirs = multiprocessing.Pipe()
        outbox = Outbox(ours, asyncio.get_running_loop())
        with ours:
            told = [outbox.send(LARGE)]
            theirs.close()
            # the loop finds out that nobody takes the rest
            await asyncio.sleep(0.01)
            told.append(outbox.send(b"hello"))
            outbox.close()
            return [*told, outbox.send(b"hello")]

    assert asyncio.run(scene()) == [True, False, False]
