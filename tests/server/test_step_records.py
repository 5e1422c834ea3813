import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medusa_core.text import TextCodec
from server.answer import Piece
from server.call_events import Event
from server.calling import PlainStream
from server.routes.chat import ChatShape
from server.schemas.usage import SpeculationStats, StepRecord
from server.step_records import StepRecords
from server.worker.messages import DraftedNode, FinishReason, PromptStats, StepDetail, StepStats, TokenDelta
from tests.server.running import MODEL, Running
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece

TEXT = "Hello world, how are you today? \u00f8 日本語"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny"))))


def delta(*tokens: int, emitted: tuple[int, ...] | None = None, reason: FinishReason | None = None) -> TokenDelta:
    """A step that accepts all but its last token, in a chain under token 9; what is emitted may be cut."""
    emitted = emitted if emitted is not None else tokens
    nodes = [DraftedNode(9, None, 0, None, None, 1.0)]
    nodes += [
        DraftedNode(token, depth, depth + 1, "lookup", None, 0.123456) for depth, token in enumerate(emitted[:-1])
    ]
    detail = StepDetail(nodes, list(range(1, len(nodes))), list(emitted))
    return TokenDelta(1, list(tokens), None, StepStats({}, [], [], 0.25, {}, detail), reason, None)


def prompt(token: int) -> TokenDelta:
    return TokenDelta(1, [token], PromptStats(5, 0, 0.5, None), None, None, None)


def recorded(codec: TextCodec, *deltas: TokenDelta) -> list[StepRecord]:
    recorder = StepRecords(codec, None).recorder(2, codec.stream())
    return [record for one in deltas for record in recorder.take(one, len(one.tokens), False)]


def joined(records: list[StepRecord]) -> str:
    return "".join(token["text"] for record in records for token in record["tokens"][: record["delivered"]])


def test_a_record_holds_the_tree_the_path_and_what_was_emitted(codec: TextCodec) -> None:
    # in the tiny tokenizer "!" is 2, '"' is 3, "#" is 4 and so on
    first, step = recorded(codec, prompt(9), delta(2, 3))

    assert first == {
        "index": 2,
        "step": 0,
        "tree": [],
        "path": [],
        "tokens": [{"id": 9, "text": "(", "source": "base"}],
        "delivered": 1,
        "seconds": 0.5,
    }
    assert step == {
        "index": 2,
        "step": 1,
        "tree": [
            {"id": 9, "text": "(", "parent": None, "depth": 0, "source": "base", "rank": None, "probability": 1.0},
            {"id": 2, "text": "!", "parent": 0, "depth": 1, "source": "lookup", "rank": None, "probability": 0.1235},
        ],
        "path": [1],
        "tokens": [{"id": 2, "text": "!", "source": "lookup"}, {"id": 3, "text": '"', "source": "base"}],
        "delivered": 2,
        "seconds": 0.25,
    }


def test_what_was_cut_is_told_and_not_counted_as_delivered(codec: TextCodec) -> None:
    _, step = recorded(codec, prompt(9), delta(2, 3, emitted=(2, 3, 4, 5), reason="length"))

    assert [token["text"] for token in step["tokens"]] == ["!", '"', "#", "$"]
    assert [token["source"] for token in step["tokens"]] == ["lookup", "lookup", "lookup", "base"]
    assert step["delivered"] == 2


def test_an_end_token_is_delivered_and_spells_nothing(codec: TextCodec) -> None:
    records = recorded(codec, prompt(9), delta(2, 3, emitted=(2, 3, 4), reason="stop"))

    assert [token["text"] for token in records[1]["tokens"]] == ["!", "", "#"]
    assert (records[1]["delivered"], joined(records)) == (2, "(!")


def test_a_character_belongs_to_the_token_that_completes_it(codec: TextCodec) -> None:
    half, other = codec.encode("\u00f8")
    records = recorded(codec, prompt(9), delta(2, half), delta(other, 3))

    assert [token["text"] for token in records[1]["tokens"]] == ["!", ""]
    assert [token["text"] for token in records[2]["tokens"]] == ["\u00f8", '"']
    assert records[2]["tree"][1]["text"] == "\ufffd"


@pytest.mark.parametrize("save", [save_byte_level, save_sentencepiece])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_the_texts_of_all_tokens_are_the_text_of_the_answer(tmp_path: Path, save: Any, cut: int) -> None:
    codec = TextCodec.load(str(save(tmp_path)))
    tokens = codec.encode(TEXT, add_special_tokens=False)
    tokens = tokens[: len(tokens) - cut]
    stream = codec.stream()
    text = stream.push(tokens).text + stream.finish()
    steps = [delta(*tokens[at : at + 3]) for at in range(1, len(tokens) - 3, 3)]
    left = tokens[1 + 3 * len(steps) :]
    found = recorded(codec, prompt(tokens[0]), *steps, delta(*left, reason="length"))

    assert joined(found) == text


def test_only_so_many_records_are_kept_and_the_others_are_counted(codec: TextCodec) -> None:
    records = StepRecords(codec, 3)
    recorders = [records.recorder(index, codec.stream()) for index in range(3)]
    for recorder in recorders:
        assert recorder.take(prompt(9), 1, False) == ()
        assert recorder.take(delta(2, 3), 2, False) == ()
    stats: SpeculationStats = {
        "steps": 3, "tokens_per_step": 2.0, "acceptance_lengths": [], "drafted": 0, "accepted": 0, "by_source": {},
    }  # fmt: skip
    records.tell(stats, [1, 0])

    assert [(record["index"], record["step"]) for record in stats["detail"]] == [(0, 0), (1, 0), (1, 1)]
    assert stats["detail_left_out"] == 1


def test_a_step_of_which_nothing_was_delivered_has_no_record(codec: TextCodec) -> None:
    assert StepRecords(codec, None).recorder(0, codec.stream()).take(delta(2, 3), 0, True) == ()


def streamed(server: Running, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    answer = server.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def asked(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = (
        {"prompt": TEXT} if path == COMPLETIONS else {"messages": [{"role": "user", "content": TEXT}]}
    )
    return {"model": MODEL, "max_tokens": 200, "speculation": {"detail": True}, **prompt, **fields}


def text_of(choice: dict[str, Any]) -> str:
    part = choice.get("delta", choice.get("message", choice))
    return part.get("content") or part.get("text") or ""


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"max_tokens": 6}, {"stop": "today"}], ids=str)
def test_a_stream_tells_of_each_step_what_the_answer_in_one_piece_tells(
    server: Running, path: str, fields: dict[str, Any]
) -> None:
    whole = server.post(path, asked(path, **fields)).json()
    chunks = list(streamed(server, path, asked(path, **fields)))
    listed = whole["speculation"].pop("detail")

    assert [record for chunk in chunks for record in chunk.get("speculation_detail", [])] == listed
    assert chunks[-1]["speculation"] == whole["speculation"]
    assert "speculation_detail" not in chunks[-1]
    assert sum(record["delivered"] for record in listed) == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        records = [record for record in listed if record["index"] == choice["index"]]
        assert [record["step"] for record in records] == list(range(len(records)))
        text = text_of(choice)
        assert joined(records)[: len(text)] == text
        assert joined(records)[len(text) :] in ("", fields.get("stop", ""))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_record_comes_with_the_text_of_its_step_also_when_that_is_held_back(server: Running, path: str) -> None:
    chunks = list(streamed(server, path, asked(path, stop="you today?!")))
    text, spelt = "", ""
    for chunk in chunks:
        for record in chunk.get("speculation_detail", []):
            assert len(chunk["speculation_detail"]) == 1
            spelt += joined([record])
        text += text_of(chunk["choices"][0])
        assert spelt.startswith(text)

    assert text == spelt
    # at least one step spells nothing but what may begin the stop string
    assert any("speculation_detail" in chunk and text_of(chunk["choices"][0]) == "" for chunk in chunks)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("speculation", [None, {}, {"detail": False}, {"detail": None}], ids=str)
def test_nobody_sees_a_record_who_has_not_asked(server: Running, path: str, speculation: Any) -> None:
    body = asked(path, speculation=speculation)

    assert "detail" not in server.post(path, body).json()["speculation"]
    assert not any("speculation_detail" in chunk for chunk in streamed(server, path, body))


def test_the_best_of_several_answers_tells_of_itself_alone(server: Running) -> None:
    answer = server.post(COMPLETIONS, asked(COMPLETIONS, best_of=3, n=1)).json()

    assert {record["index"] for record in answer["speculation"]["detail"]} == {0}
    assert joined(answer["speculation"]["detail"]) == answer["choices"][0]["text"]


def test_detail_is_true_or_false(server: Running) -> None:
    answer = server.post(COMPLETIONS, asked(COMPLETIONS, speculation={"detail": "yes"}))

    assert answer.status_code == 400
    assert "detail" in answer.json()["error"]["message"]


def test_a_record_does_not_wait_for_a_call_that_is_not_complete(codec: TextCodec) -> None:
    class Silent(PlainStream):
        """Gives nothing away before the end."""

        def feed(self, text: str) -> list[Event]:
            return []

    records = tuple(recorded(codec, prompt(9)))
    shape = ChatShape("id", 0, "m", "fp", False, codec, [Silent()], False)
    (chunk,) = shape.piece(0, Piece("(", None, records))

    assert chunk["choices"][0]["delta"] == {}
    assert chunk["speculation_detail"] == list(records)
