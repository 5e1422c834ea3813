from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from medusa_core.demo.tokenizer import END_OF_TEXT, TURN_END, train_tokenizer

SOURCE = 'def dedent(text):\n    if text:\n        return text.strip()\n\n\nclass Box:\n    """Holds 12 things."""\n'


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([SOURCE] * 5, 400)


@pytest.mark.parametrize("text", [SOURCE, "", "  x\t\ty \r\n", "Grüße 日本語 🙂", "a  b", "\n\n\n", "x = 1234567\n"])
def test_every_text_survives_unchanged(text: str) -> None:
    assert tokenizer().decode(tokenizer()(text)["input_ids"]) == text


@pytest.mark.parametrize("end", range(1, len(SOURCE)))
def test_a_prompt_that_ends_after_a_newline_or_indentation_splits_as_the_whole_text_does(end: int) -> None:
    prefix = SOURCE[:end]
    is_whole_whitespace = prefix[-1] in " \n" and not SOURCE[end].isspace()
    if prefix.rstrip(" ").endswith("\n") and is_whole_whitespace:
        ids = tokenizer()(prefix)["input_ids"]

        assert tokenizer()(SOURCE)["input_ids"][: len(ids)] == ids


def test_special_tokens_come_first_and_end_of_turn_ends_a_sequence() -> None:
    own = tokenizer()

    assert own.convert_tokens_to_ids([END_OF_TEXT, "<|im_start|>", TURN_END]) == [0, 1, 2]
    assert own.eos_token == TURN_END
    assert own.model_input_names == ["input_ids", "attention_mask"]


def test_the_template_marks_what_the_assistant_says() -> None:
    own = tokenizer()
    messages = [{"role": "user", "content": "Box?"}, {"role": "assistant", "content": "Box."}]

    encoded = own.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)

    marked = [
        token for token, is_marked in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if is_marked
    ]
    assert own.decode(marked) == "Box.<|im_end|>"


def test_a_generation_prompt_is_how_an_answer_begins() -> None:
    own = tokenizer()
    question = [{"role": "user", "content": "Box?"}]
    answered = [*question, {"role": "assistant", "content": "Box."}]

    asked = own.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]

    assert own.apply_chat_template(answered, return_dict=True)["input_ids"][: len(asked)] == asked
