import json
from pathlib import Path
from typing import Any

import pytest

from medusa_core.chat_templates import VICUNA
from medusa_core.errors import ConfigurationError
from medusa_core.tokenizer_files import load_tokenizer
from medusa_core.training.encoding import Encoder, Example, encode, read_examples, template_ids
from medusa_core.training.records import Message, Record
from tests.medusa_core.training.cast import PLAIN_TEMPLATE, tokenizer
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece

TURNS = (
    Message("system", "No."),
    Message("user", "Yes."),
    Message("assistant", "Yes."),
    Message("user", "No. Yes."),
    Message("assistant", "Yes."),
)


# As Qwen3's: what stands before the last word of an answer, its reasoning, is dropped once the conversation goes on.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split(' ')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_FORGETFUL = (
    FORGETFUL.replace("{{ '<|im_end|>", "{{ '<|im_end|>")
    .replace("'\n' }}{% if message", "'\n' }}{% generation %}{% if message")
    .replace("{{ '<|im_end|>\n' }}", "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
)
OPENS_REASONING = PLAIN_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\ndef ")
MARKS_CONTENT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
)
CALLING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
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

    assert encode(conversation(*TURNS), own) == encode(conversation(*TURNS), tokenizer())


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
        assert judged_text(example, own) == "Yes.<|im_end|>Yes.<|im_end|>"


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


@pytest.mark.parametrize("with_markers", [False, True])
def test_where_earlier_answers_are_rewritten_each_is_shown_as_it_was_written(with_markers: bool) -> None:
    own = tokenizer(FORGETFUL if not with_markers else MARKED_FORGETFUL)
    turns = (TURNS[1], Message("assistant", "No. Yes."), TURNS[3], Message("assistant", "No. No."))

    first, second = Encoder(own).encode([conversation(*turns)])

    assert judged_text(first, own) == "No. Yes.<|im_end|>"
    assert own.decode(first.tokens) == "<|im_start|>user\nYes.<|im_end|>\n<|im_start|>assistant\nNo. Yes.<|im_end|>\n"
    assert judged_text(second, own) == "No. No.<|im_end|>"
    assert "assistant\nYes.<|im_end|>" in own.decode(second.tokens)
    with pytest.raises(ConfigurationError, match="rewrites earlier turns"):
        encode(conversation(*turns), own)


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_answer_of_the_models_own_follows_the_prompt_that_it_was_written_behind(is_cut: bool) -> None:
    # The template opens the reasoning in its generation prompt and shows none in a finished turn.
    own = tokenizer(OPENS_REASONING)
    record = Record(1, (TURNS[1], Message("assistant", "No. No.")), None, is_cut, is_verbatim=True)

    example = encode(record, own)

    assert judged_text(example, own) == "No. No." + ("" if is_cut else "<|im_end|>")
    assert own.decode(example.tokens).endswith("assistant\ndef No. No." + ("" if is_cut else "<|im_end|>"))


def test_a_template_whose_answers_cannot_be_found_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"answer in message 1 cannot be found.*'.*def '.*generation"):
        encode(conversation(*TURNS[1:3]), tokenizer(OPENS_REASONING))


def test_a_cut_conversation_is_judged_in_its_whole_answers_too() -> None:
    own = tokenizer()

    assert judged_text(encode(conversation(*TURNS, is_cut=True), own), own) == "Yes.<|im_end|>Yes."


def test_markers_that_leave_the_end_of_the_turn_out_do_not_hide_it() -> None:
    own = tokenizer(MARKS_CONTENT)

    assert judged_text(encode(conversation(*TURNS), own), own) == "Yes.<|im_end|>Yes.<|im_end|>"


def test_a_token_that_is_half_the_templates_is_not_judged() -> None:
    own = tokenizer(
        "{% for message in messages %}{{ message['content'] + ('' if message['role'] == 'user' else '<|im_end|>') }}"
        "{% endfor %}"
    )
    example = encode(conversation(Message("user", "de"), Message("assistant", "dent text")), own)

    assert own.decode(example.tokens[:1]) == "dedent"  # nobody who was shown "de" could write that
    assert judged_text(example, own) == " text<|im_end|>"


def test_nor_is_one_whose_end_is_the_next_speakers() -> None:
    own = tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    turns = (Message("user", "Yes"), Message("assistant", ". text.de"), Message("user", "dent"))

    assert judged_text(encode(conversation(*turns), own), own) == ". text"


@pytest.mark.parametrize("text", ["", " ", "Yes. \n"])
def test_an_answer_that_ends_in_nothing_to_see_is_judged_no_further_than_its_end(text: str) -> None:
    for template in (None, MARKS_CONTENT, PLAIN_TEMPLATE):
        own = tokenizer(template)
        turns = (TURNS[1], Message("assistant", text), TURNS[1])

        assert judged_text(encode(conversation(*turns), own), own) == text + "<|im_end|>"


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_a_first_turn_by_the_assistant_is_context(template: str | None) -> None:
    own = tokenizer(template)

    assert judged_text(encode(conversation(TURNS[2], *TURNS[1:3]), own), own) == "Yes.<|im_end|>"


@pytest.mark.parametrize("save", [save_byte_level, save_sentencepiece])
@pytest.mark.parametrize("text", ["Hello", "Grüße aus Köln, 日本語 🙂🚀", "  two\n\nlines ", "\n"])
def test_marks_by_characters_are_those_of_the_tokens_prefix(save: Any, text: str, tmp_path: Path) -> None:
    # Encoding the longer and longer beginnings is the slow way to the same answer.
    own = load_tokenizer(save(tmp_path), "tiny")
    own.chat_template = own.chat_template if own.chat_template is not None else VICUNA
    turns = (Message("user", "Hello"), Message("assistant", text), Message("user", text), Message("assistant", text))
    shown = [turn.shown() for turn in turns]

    example = encode(conversation(*turns), own)

    expected = [False] * len(example.tokens)
    for index in (1, 3):
        before = template_ids(own, shown[:index], add_generation_prompt=True)
        after = template_ids(own, shown[: index + 1], add_generation_prompt=False)
        assert list(example.tokens[: len(after)]) == after
        for place in range(len(before), len(after)):
            expected[place] = True
    assert list(example.judged) == expected


@pytest.mark.parametrize("arguments", ["(call.function.arguments | tojson)", "call.function.arguments"])
def test_tool_calls_are_judged_as_the_template_writes_them(arguments: str) -> None:
    calls = [{"type": "function", "function": {"name": "dedent", "arguments": {"text": "a"}}}]
    own = tokenizer(CALLING.replace("(call.function.arguments | tojson)", arguments))
    turns = (TURNS[1], Message("assistant", "", {"tool_calls": calls}), Message("tool", "No."), TURNS[2])

    example = encode(Record(1, turns, None, is_cut=False, tools=({"name": "dedent"},)), own)

    assert judged_text(example, own) == 'dedent{"text": "a"}<|im_end|>Yes.<|im_end|>'
    assert own.decode(example.tokens).startswith('[{"name": "dedent"}]')


def test_tool_calls_that_the_template_would_drop_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not know 'tool_calls'"):
        encode(conversation(TURNS[1], Message("assistant", "", {"tool_calls": [{}]})), tokenizer())


def test_what_the_template_refuses_is_said_in_its_words() -> None:
    with pytest.raises(ConfigurationError, match="refuses this conversation: roles must alternate"):
        encode(conversation(*TURNS), tokenizer("{{ raise_exception('roles must alternate') }}"))


@pytest.mark.parametrize(
    ("records", "max_length", "complaint"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}], 99, "has no answer to learn from"),
        (
            [{"messages": [{"role": "user", "content": "Yes. " * 50}, {"role": "assistant", "content": "No."}]}],
            9,
            "no answer within the first 9 tokens",
        ),
    ],
)
def test_a_file_without_an_answer_is_refused(
    tmp_path: Path, records: list[Any], max_length: int, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        list(read_examples(write(tmp_path / "data.jsonl", *records), tokenizer(), max_length))


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

    with pytest.raises(ConfigurationError, match=r"line 2: .*no chat template.*--chat-template FILE"):
        list(read_examples(path, own, max_length=8))
