"""The pure functions of the page's modules, in the browser that will run them."""

import re
from typing import Any

import pytest

from tests.browser.conftest import Visit

STEP = {
    "step": 3,
    "seconds": 0.004,
    "tree": [
        {"text": "a", "parent": None, "depth": 0, "source": "base", "rank": None, "probability": 1.0},
        {"text": "x", "parent": 0, "depth": 1, "source": "heads", "rank": 0, "probability": 0.6},
        {"text": "b", "parent": 0, "depth": 1, "source": "lookup", "rank": None, "probability": 0.5},
        {"text": "c", "parent": 2, "depth": 2, "source": "heads", "rank": 1, "probability": 0.25},
    ],
    "path": [2, 3],
    "tokens": [
        {"text": "b", "source": "lookup"},
        {"text": "c", "source": "heads"},
        {"text": "d", "source": "base"},
    ],
    "delivered": 3,
}


@pytest.fixture
def call(fake: Visit) -> Any:
    def run(module: str, expression: str, given: Any = None) -> Any:
        script = f"async (given) => {{ const it = await import('/playground/{module}.js'); return {expression}; }}"
        return fake.page.evaluate(script, given)

    return run


def test_events_are_the_same_wherever_the_stream_is_cut(call: Any) -> None:
    stream = ': ping\r\n\r\ndata: {"a": 1}\n\ndata: one\ndata: two\r\n\r\ndata: [DONE]\n\ndata: never en'
    cuts = """[...given.keys()].map((at) => {
      const parser = new it.EventParser();
      return [...parser.push(given.slice(0, at)), ...parser.push(given.slice(at))];
    })"""

    for found in call("events", cuts.replace("given.keys", "Array.from(given).keys"), stream):
        assert found == ['{"a": 1}', "one\ntwo", "[DONE]"]


def test_a_tree_is_laid_out_with_what_was_kept_on_top(call: Any) -> None:
    places = call("tree", "it.placesOf(given)", STEP)
    found = {place["text"]: (place["column"], place["row"], place["kept"], place["added"]) for place in places}

    assert found == {
        "a": (0, 0, True, False),
        "b": (1, 0, True, False),
        "c": (2, 0, True, False),
        "d": (3, 0, True, True),
        "x": (1, 1, False, False),
    }


def test_white_space_in_a_tree_is_seen(call: Any) -> None:
    given = [" the", "\n", "", "        ", "abcdefghijklmnopqrstuvwxyz"]

    assert call("tree", "given.map(it.shown)", given) == ["␣the", "⏎", "∅", "␣8", "abcdefghijklmno…"]


def test_what_is_told_of_a_token(call: Any) -> None:
    first, second, own = (call("answer", f"it.toldOf(given, {place})", STEP) for place in range(3))

    assert first == ["Step 3, token 1 of 3 in 4.0 ms", "lookup: depth 1", "expected with 50 %"]
    assert second[1:] == [
        "heads: depth 2, guess 2 of head 2",
        "expected with 25 % (50 % once the token before was right)",
    ]
    assert own[1].startswith("base: ")


def test_figures_leave_out_what_the_prompt_brought_and_how_long_it_took(call: Any) -> None:
    prompt = {
        "step": 0,
        "seconds": 1,
        "tree": [],
        "path": [],
        "tokens": [{"text": "a", "source": "base"}],
        "delivered": 1,
    }
    chunks = [
        [{"choices": [{"delta": {"content": "a"}}], "speculation_detail": [prompt]}, 3000],
        [{"choices": [{"delta": {"content": "bcd"}}], "speculation_detail": [STEP]}, 3500],
        [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, 9000],
    ]
    expression = """((answer) => {
      for (const [chunk, now] of given) answer.take(chunk, now);
      return [answer.text, answer.tokens, answer.passes, answer.tokensPerStep, answer.firstTokenSeconds,
        answer.decodeSeconds, answer.tokensPerSecond, answer.finish, Object.fromEntries(answer.bySource)];
    })(new it.Answer(1000))"""

    assert call("answer", expression, chunks) == [
        "abcd", 4, 1, 3, 2, 0.5, 6, "stop", {"base": 2, "heads": 1, "lookup": 1},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("same", "same", None), ("abc", "abd", 2), ("abc", "ab", 2), ("", "x", 0), ("a😀", "a😁", 1)],
)
def test_where_two_texts_part(call: Any, one: str, other: str, expected: int | None) -> None:
    assert call("comparison", "it.firstDifference(...given)", [one, other]) == expected


def test_how_close_it_was_is_read_from_either_endpoints_log_probabilities(call: Any) -> None:
    chat = {
        "content": [
            {"token": "ab", "logprob": -0.1, "top_logprobs": []},
            {
                "token": "cd",
                "logprob": -0.5,
                "top_logprobs": [
                    {"token": "cd", "logprob": -0.5},
                    {"token": "z", "logprob": -0.75},
                    {"token": "ce", "logprob": -1.5},
                ],
            },
        ]
    }
    completion = {
        "tokens": ["ab", "cd"],
        "token_logprobs": [-0.1, -0.5],
        "top_logprobs": [{"ab": -0.1}, {"cd": -0.5, "z": -0.75, "ce": -1.5}],
    }
    for logprobs in (chat, completion):
        gap = call("comparison", "it.gapAt(it.scoredOf(given, 0), 3, 'abce')", logprobs)

        assert gap == {"chosen": "cd", "instead": "ce", "gap": 1.0}
    # behind the end of the one, at the end of the other, and where the other one is none of the likeliest
    for offset, other in ((9, "abce"), (2, "ab"), (2, "abx")):
        assert call("comparison", f"it.gapAt(it.scoredOf(given, 0), {offset}, '{other}')", chat) is None


@pytest.mark.parametrize(
    ("fast", "plain", "expected"),
    [
        (1.0, 2.5, "Without speculation it came 1.50 s later: 1.00 s against 2.50 s .+, 2.50 times as long."),
        (2.5, 1.0, "Without speculation it came 1.50 s earlier: .+ Here guessing cost more than it saved"),
        (1.0, 1.004, "Both took the same time, 1.00 s"),
        (0.2449, 0.2251, "Without speculation it came 0.01 s earlier: 0.24 s against 0.23 s"),
        (None, 1.0, "too short"),
    ],
)
def test_a_comparison_says_who_was_faster_whoever_that_was(
    call: Any, fast: float | None, plain: float, expected: str
) -> None:
    assert re.search(expected, call("comparison", "it.ratioOf(...given)", [fast, plain]))


def test_only_fences_are_markup(call: Any) -> None:
    text = "one\n```py\n<b>\n````\n```\nnot a fence ```\n~~~"
    parts = call("prose", "it.partsOf(given).map((part) => [part.kind, part.text, part.language])", text)

    assert parts == [["text", "one", ""], ["code", "<b>", "py"], ["code", "not a fence ```\n~~~", ""]]
