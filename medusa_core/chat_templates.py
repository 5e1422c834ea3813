"""Chat templates for checkpoints that were published without one.

A row is looked up by the exact name of a published repository: a fact the checkpoint states about itself, or the
last part of the hub id it was asked for by. A renamed folder without such a fact takes --chat-template FILE.
"""

__all__ = ["CHAT_TEMPLATES", "VICUNA", "known_template"]

# Source: FastChat, conversation template "vicuna_v1.1". No separator stands between </s> and the next USER.
VICUNA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. '"
    ' "The assistant gives helpful, detailed, and polite answers to the user\'s questions." }}'
    "{% endif %}"
    "{{ ' ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% elif not loop.first %}{{ raise_exception('a system message must be the first one') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

CHAT_TEMPLATES: dict[str, str] = {
    "vicuna-7b-v1.1": VICUNA,
    "vicuna-13b-v1.1": VICUNA,
    "vicuna-7b-v1.3": VICUNA,
    "vicuna-13b-v1.3": VICUNA,
    "vicuna-33b-v1.3": VICUNA,
    "vicuna-7b-v1.5": VICUNA,
    "vicuna-13b-v1.5": VICUNA,
    "vicuna-7b-v1.5-16k": VICUNA,
    "vicuna-13b-v1.5-16k": VICUNA,
}


def known_template(*names: str | None) -> str | None:
    """The template of the first name whose last path component is a row of the table, None when there is none."""
    for name in names:
        template = CHAT_TEMPLATES.get(name.rstrip("/").rpartition("/")[2]) if name is not None else None
        if template is not None:
            return template
    return None
