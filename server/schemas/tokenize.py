"""POST /tokenize and /detokenize: requests and answers, in vLLM's shapes."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from medusa_core.errors import InvalidParameter
from server.schemas.common import Flag, RequestFields
from server.schemas.messages import Message, TemplateArguments, check_ending
from server.schemas.tools import ToolFields

__all__ = ["MAX_TOKENS", "DetokenizeRequest", "Detokenized", "TokenizeRequest", "Tokenized"]

# More than a body of the default size can hold of distinct text, and a tenth of a second of work.
MAX_TOKENS = 1_000_000
MAX_TOKEN_ID = 2**32


class TokenizeRequest(RequestFields, ToolFields):
    """The ids of a text, or of a conversation as the model would be given it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "def read_text(path):"}]})

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Flag = False
    chat_template_kwargs: TemplateArguments = Field(default_factory=dict)
    return_token_strs: Flag = False

    @model_validator(mode="after")
    def _is_one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("send either prompt or messages", "prompt")
        if self.messages is None and self.tool_request is not None:
            raise InvalidParameter("tools belong to a conversation; send messages", "tools")
        if self.messages is not None:
            check_ending(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self

    @property
    def starts_turn(self) -> bool:
        """Whether the prompt ends with the start of an assistant's turn."""
        return self.add_generation_prompt is not False and not self.continue_final_message


class Tokenized(TypedDict):
    """Ids of a text.

    max_model_len: tokens of prompt and answer together; null until the model is loaded.
    token_strs:    the ids as the vocabulary writes them, when asked for.
    """

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestFields):
    """The text of some ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [10, 20, 30]}]})

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=MAX_TOKEN_ID)]] = Field(max_length=MAX_TOKENS, fail_fast=True)


class Detokenized(TypedDict):
    """The text, special tokens included."""

    prompt: str
