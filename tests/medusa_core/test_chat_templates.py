import pytest
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medusa_core.chat_templates import CHAT_TEMPLATES, VICUNA, known_template


def render(*messages: dict[str, str]) -> str:
    environment = ImmutableSandboxedEnvironment()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    values = {"bos_token": "<s>", "eos_token": "</s>", "raise_exception": raise_exception}
    return environment.from_string(VICUNA).render(messages=messages, add_generation_prompt=True, **values)


def test_vicuna_chats_are_written_as_fastchat_wrote_them_in_training() -> None:
    text = render(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    )

    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
        "USER: Hi ASSISTANT: Hello!</s>USER: Who are you? ASSISTANT:"
    )


def test_a_system_message_replaces_vicunas_own() -> None:
    text = render({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})

    assert text == "<s>Be brief. USER: Hi ASSISTANT:"


def test_a_late_system_message_is_refused_instead_of_dropped() -> None:
    with pytest.raises(TemplateError, match="first"):
        render({"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."})


@pytest.mark.parametrize(
    "name", ["lmsys/vicuna-7b-v1.3", "vicuna-7b-v1.3", "/models/vicuna-7b-v1.3/", "/home/a/vicuna-7b-v1.3"]
)
def test_a_row_is_found_by_the_exact_last_component_of_a_name(name: str) -> None:
    assert known_template(name) == VICUNA


@pytest.mark.parametrize("name", ["my-vicuna-7b-v1.3-tuned", "vicuna", "lmsys", "", None])
def test_a_name_that_only_resembles_a_row_finds_nothing(name: str | None) -> None:
    assert known_template(name) is None


def test_a_renamed_folder_is_known_by_what_its_checkpoint_says() -> None:
    assert known_template("/models/mine", "lmsys/vicuna-13b-v1.5") == CHAT_TEMPLATES["vicuna-13b-v1.5"]
