"""Fields of OpenAI's that an endpoint does not have: refused by name where they ask for something, else taken."""

from dataclasses import dataclass

__all__ = ["ACCEPTED_WITHOUT_EFFECT", "NOT_BUILT", "NotBuilt"]


@dataclass(frozen=True)
class NotBuilt:
    """A known field whose effect this server cannot give.

    neutral: values that ask for no effect and are never refused (nor is null).
    """

    neutral: tuple[object, ...]
    reason: str


TOOLS = NotBuilt(([],), "only a chat has tools; ask /v1/chat/completions")

NOT_BUILT: dict[str, NotBuilt] = {
    "audio": NotBuilt((), "the model reads and writes text only"),
    "best_of": NotBuilt((1,), "the older endpoint's; ask for n answers and choose among them"),
    "chat_template": NotBuilt((), "it is the operator's choice; see --chat-template"),
    "documents": NotBuilt(([],), "documents are not built yet; put their text into a message"),
    "echo": NotBuilt((False,), "a conversation is not repeated; leave it out or send false"),
    "function_call": NotBuilt(("none", "auto"), TOOLS.reason),
    "functions": TOOLS,
    "modalities": NotBuilt((["text"], []), "the model reads and writes text only"),
    "suffix": NotBuilt(("",), "the older endpoint's; ask /v1/completions for what stands between two texts"),
    "tool_choice": NotBuilt(("none", "auto"), TOOLS.reason),
    "tools": TOOLS,
    "top_logprobs": NotBuilt((0,), "the number of alternatives stands in logprobs here; leave it out or send 0"),
    "web_search_options": NotBuilt(({},), "the server never searches the web; leave it out"),
}

# Bookkeeping of OpenAI's own service: nothing an answer depends on.
ACCEPTED_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
