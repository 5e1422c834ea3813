"""Mixed traffic as a busy afternoon brings it: every request follows from a seed and its number alone.

tests/faults/clients.py sends what `asks` makes.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MODEL = "demo"
NAMES = (
    "textwrap.dedent", "os.path.join", "json.dumps", "itertools.chain", "functools.partial", "re.compile", "abc.ABC",
    "collections.Counter", "pathlib.Path", "asyncio.gather", "subprocess.run", "threading.Lock", "random.choice",
    "string.Template", "datetime.timedelta", "heapq.heappush", "bisect.insort", "shutil.copy", "csv.reader", "zlib",
)  # fmt: skip
QUESTIONS = ("What does {} do?", "Show me the signature of {}.", "When would I use {}?", "{} — erklär's kurz 🙂")
SOURCES = ("def {}(text, width=70):\n", "import {}\n\nclass Reader:\n", '"""Tests of {}."""\n', "# {}\nfor line in ")
STOPS = ("\n\n", ".", " the", "return", "(", "```", "e", "🙂")

Stage = Literal["before the first byte", "in the middle", "while it waits for all"]


@dataclass(frozen=True)
class Leaving:
    """When a client gives up.

    after_s: seconds behind its request, or for "in the middle" behind the first event.
    """

    stage: Stage
    after_s: float
    abruptly: bool


@dataclass(frozen=True)
class Ask:
    """One request; `seed` and `number` make it again.

    is_wrong: it must be refused with 400.
    """

    seed: int
    number: int
    path: str
    body: Mapping[str, Any]
    leaving: Leaving | None
    is_wrong: bool = False

    @property
    def name(self) -> str:
        return f"request {self.number} of seed {self.seed}"

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream", False))

    @property
    def alone(self) -> "Ask":
        """The same answer in one piece, waited for."""
        body = {name: value for name, value in self.body.items() if name not in ("stream", "stream_options")}
        return replace(self, body=body, leaving=None)


@dataclass(frozen=True)
class Mix:
    """What traffic is made of.

    leaving: share of the requests whose client gives up.
    wrong:   share of those that must be refused.
    longest: tokens of the longest answers.
    unique:  whether every prompt begins as no other does.
    """

    leaving: float = 0.4
    wrong: float = 0.0
    longest: int = 96
    unique: bool = False


def asks(seed: int, numbers: Iterable[int], mix: Mix) -> list[Ask]:
    """The requests of these numbers."""
    return [one_ask(seed, number, mix) for number in numbers]


def one_ask(seed: int, number: int, mix: Mix) -> Ask:
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < mix.wrong:
        path, body = _wrong(rng)
        return Ask(seed, number, path, body, None, is_wrong=True)
    path = rng.choice((CHAT, COMPLETIONS))
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 1 + int(mix.longest ** rng.random())}
    body |= _chat(rng) if path == CHAT else _completion(rng)
    if mix.unique and path == CHAT:
        body["messages"] = [{"role": "system", "content": f"This is conversation {number}."}, *body["messages"]]
    elif mix.unique:
        body["prompt"] = f"# {number} of {seed}\n{body['prompt']}"
    body |= _sampling(rng)
    body |= _form(rng, path)
    if rng.random() < 0.2:
        body["stop"] = rng.sample(STOPS, rng.randint(1, 3))
    if rng.random() < 0.15:
        body |= (
            {"logprobs": True, "top_logprobs": rng.randint(0, 5)} if path == CHAT else {"logprobs": rng.randint(0, 5)}
        )
    if rng.random() < 0.12:
        body["n"] = 2
    if rng.random() < 0.2:
        body["speculation"] = {"mode": rng.choice(("tree", "static", "chain", "off"))}
    if rng.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Ask(seed, number, path, body, _leaving(rng, body) if rng.random() < mix.leaving else None)


def _wrong(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A request that cannot be answered, for one of many reasons."""
    body: dict[str, Any] = {"model": MODEL, "prompt": "import os", "max_tokens": 4}
    wrong = rng.choice(
        (
            {"max_tokens": -1},
            {"temperature": "warm"},
            {"prompt": "word " * 4000},
            {"prompt": [5_000_000]},
            {"logit_bias": {"9" * 9: 1}},
            {"structured_outputs": {"regex": f"(unclosed{rng.randrange(10**6)}"}},
            {"structured_outputs": {"json": {"$ref": f"#/nowhere/{rng.randrange(10**6)}"}}},
            {"n": 100_000},
        )
    )
    return COMPLETIONS, body | wrong


def _chat(rng: random.Random) -> dict[str, Any]:
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": "You know Python's standard library. " * rng.randint(1, 12)})
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        # few beginnings, so that conversations share them
        name = rng.choice(NAMES[:4])
        messages.append({"role": "user", "content": QUESTIONS[0].format(name)})
        messages.append({"role": "assistant", "content": f"`{name}` is a part of the standard library."})
    messages.append({"role": "user", "content": rng.choice(QUESTIONS).format(rng.choice(NAMES))})
    return {"messages": messages}


def _completion(rng: random.Random) -> dict[str, Any]:
    lines = [rng.choice(SOURCES).format(rng.choice(NAMES)) for _ in range(rng.choice((1, 1, 2, 8, 24)))]
    body: dict[str, Any] = {"prompt": "".join(lines)}
    return body | ({"echo": True} if rng.random() < 0.08 else {})


def _sampling(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": 0}
    if rng.random() < 0.6:
        body = {"temperature": round(rng.uniform(0.2, 1.5), 2), "seed": rng.randrange(2**40)}
        body |= rng.choice(({}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}))
    if rng.random() < 0.25:
        body |= rng.choice(
            ({"presence_penalty": 0.7}, {"frequency_penalty": 0.4}, {"repetition_penalty": 1.2}, {"min_tokens": 12})
        )
    if rng.random() < 0.05:
        body["logit_bias"] = {str(rng.randrange(300, 4000)): rng.choice((-100, 5)) for _ in range(4)}
    return body


def _form(rng: random.Random, path: str) -> dict[str, Any]:
    """A form for about one answer in six, a new one each time."""
    drawn = rng.random()
    if drawn > 0.16:
        return {}
    fields = {f"field_{rng.randrange(10**6)}": {"type": rng.choice(("string", "integer", "boolean"))} for _ in range(3)}
    schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    if drawn < 0.1:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}}
    if drawn < 0.13 or path == COMPLETIONS:
        return {"structured_outputs": {"choice": [f"{rng.choice(NAMES)} {rng.randrange(100)}" for _ in range(4)]}}
    function = {"name": f"look_up_{rng.randrange(1000)}", "description": "Look something up.", "parameters": schema}
    named = {"type": "function", "function": {"name": function["name"]}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": named}


def _leaving(rng: random.Random, body: Mapping[str, Any]) -> Leaving:
    is_abrupt = rng.random() < 0.3
    if not body.get("stream", False):
        return Leaving("while it waits for all", rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 2.0))), is_abrupt)
    if rng.random() < 0.5:
        return Leaving("before the first byte", rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 2.0))), is_abrupt)
    return Leaving("in the middle", rng.choice((0.0, rng.uniform(0, 0.2))), is_abrupt)
