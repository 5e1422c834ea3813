import json
from pathlib import Path
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.encoding import Example, encode, read_examples
from medusa_core.training.records import Message, Record
from tests.medusa_core.training.cast import PLAIN_TEMPLATE, tokenizer

TURNS = (
    Message("system", "No."),
    Message("user", "Yes."),
    Message("assistant", "Yes."),
    Message("user", "No. Yes."),
    Message("assistant", "Yes."),
)


def conversation(*messages: Message, is_cut: bool = False) -> Record:
    return Record(1, messages, None, is_cut)


def judged_text(example: Example, own: Any) -> str:
    return str(own.decode([t for t, judged in zip(example.tokens, example.judged, strict=True) if judged]))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_only_the_assistant_is_judged_and_so_is_its_end_of_turn() -> None:
    own = tokenizer()

    assert judged_text(encode(conversation(*TURNS), own), own) == "Yes.<|im_end|>Yes.<|im_end|>"


def test_a_template_without_markers_gives_the_same_answers() -> None:
    own = tokenizer(PLAIN_TEMPLATE)

    assert judged_text(encode(conversation(*TURNS), own), own) == "Yes.<|im_end|>\nYes.<|im_end|>\n"


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_what_follows_the_first_answer_is_not_judged(template: str | None) -> None:
    # The reference labels everything from the first assistant turn on.
    own = tokenizer(template)
    example = encode(conversation(*TURNS), own)
    second_question = own.decode(example.tokens).index("No. Yes.")
    before = own(own.decode(example.tokens)[:second_question])["input_ids"]

    assert not any(example.judged[len(before) : len(before) + 3])


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_an_answer_that_repeats_the_question_is_found_where_it_stands(template: str | None) -> None:
    # The reference searches the answer's text and finds the user's.
    own = tokenizer(template)
    example = encode(conversation(Message("user", "Yes."), Message("assistant", "Yes.")), own)

    assert example.judged.index(True) > len(example.tokens) // 2
    assert judged_text(example, own).startswith("Yes.<|im_end|>")


def test_a_begin_token_stands_once_whether_the_template_writes_it_or_not() -> None:
    with_begin = "{{ '<|endoftext|>' }}" + PLAIN_TEMPLATE
    for template in (PLAIN_TEMPLATE, with_begin):
        own = tokenizer(template, begin=True)
        example = encode(conversation(*TURNS), own)

        assert example.tokens[0] == 0
        assert example.tokens.count(0) == 1
        assert len(example.tokens) == len(example.judged)
        assert judged_text(example, own) == "Yes.<|im_end|>\nYes.<|im_end|>\n"


def test_a_text_gets_the_tokenizers_own_begin_token_once_and_is_judged() -> None:
    own = tokenizer(begin=True)
    example = encode(Record(1, (), "def dedent", False), own)

    assert example.tokens.count(0) == 1
    assert all(example.judged)


def test_the_end_of_turn_is_judged_though_it_may_be_the_padding_token_too() -> None:
    # The reference sets pad = EOS and masks both.
    own = tokenizer()
    own.pad_token = own.eos_token

    assert judged_text(encode(conversation(*TURNS), own), own).count("<|im_end|>") == 2


def test_a_cut_answer_is_not_taught_to_end() -> None:
    own = tokenizer()
    example = encode(conversation(Message("user", "Yes."), Message("assistant", "No"), is_cut=True), own)

    assert judged_text(example, own) == "No"
    assert own.decode(example.tokens).endswith("assistant\nNo")


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    only_last = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}>{% endif %}"

    with pytest.raises(ConfigurationError, match="rewrites earlier turns"):
        encode(conversation(*TURNS), tokenizer(only_last))


def test_a_conversation_needs_a_template() -> None:
    own = tokenizer()
    own.chat_template = None

    with pytest.raises(ConfigurationError, match="no chat template"):
        encode(conversation(*TURNS), own)


def test_long_examples_are_cut_and_those_without_an_answer_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "data.jsonl",
        {"messages": [{"role": "user", "content": "Yes. " * 50}, {"role": "assistant", "content": "No."}]},
        {"text": "def dedent(text):\n    return text.strip()\n"},
    )

    examples = list(read_examples(path, tokenizer(), max_length=8))

    assert [len(example.tokens) for example in examples] == [8]


def test_an_unusable_record_is_named_by_its_line(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = None
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"messages": [{"role": "user", "content": "a"}]})

    with pytest.raises(ConfigurationError, match=r"line 2: .*no chat template"):
        list(read_examples(path, own, max_length=8))
