"""From a checked body to what the worker is asked for: one Generate for each answer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from medusa_core.config import SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.errors import InvalidParameter, PromptTooLong
from medusa_core.text import TextCodec, TextStream
from server.answer import Echo
from server.schemas.common import GenerationFields
from server.worker.messages import Generate, Sampling, Speculation, WorkerInfo

__all__ = ["Wanted", "check_length", "check_prompt", "check_scores", "predicted_tokens", "several", "to_generate"]

# About 100 MB of JSON.
MAX_SCORES = 2_000_000


@dataclass(frozen=True)
class Wanted:
    """One answer that a request asks for.

    generate: what the worker is to do.
    text:     turns this answer's tokens into text; knows its stop strings.
    echo:     the prompt, when the answer is to begin with it.
    first:    index of the first answer to the same prompt, which may be this one.
    """

    generate: Generate
    text: TextStream
    echo: Echo | None
    first: int


def check_prompt(prompt: list[int], requested: int | None, info: WorkerInfo, param: str) -> None:
    """Refuse what the engine would refuse, before it waits in the queue.

    Raises PromptTooLong, or InvalidParameter for an empty prompt and ids outside the vocabulary.
    """
    if not prompt:
        raise InvalidParameter(f"{param} holds no token; send some text", param)
    if len(prompt) >= info.max_context:
        raise PromptTooLong(len(prompt), requested if requested is not None else 1, info.max_context, param)
    _check_tokens(prompt, info, param)


def check_length(texts: Iterable[str], requested: int | None, codec: TextCodec, info: WorkerInfo, param: str) -> None:
    """Refuse text that is too long however it is tokenized, before anybody spends time on that.

    Raises PromptTooLong, which counts the fewest tokens there can be.
    """
    fewest = sum(map(len, texts)) // codec.longest_token
    if fewest >= info.max_context:
        raise PromptTooLong(fewest, requested if requested is not None else 1, info.max_context, param)


def check_scores(wanted: Sequence[Wanted], info: WorkerInfo) -> None:
    """Refuse more log-probabilities than a response should carry; raises InvalidParameter."""
    total = 0
    for one in wanted:
        asked, top = one.generate, one.generate.top_logprobs
        room = info.max_context - len(asked.prompt)
        answer = min(room, asked.max_tokens) if asked.max_tokens is not None else room
        total += (1 + top) * (answer + (len(asked.prompt) if one.echo is not None else 0)) if top is not None else 0
    if total > MAX_SCORES:
        message = f"the answers may hold {total} log-probabilities, at most {MAX_SCORES} are reported; ask for fewer"
        raise InvalidParameter(message, "logprobs")


def to_generate(
    body: GenerationFields,
    prompt: list[int],
    max_tokens: int | None,
    info: WorkerInfo,
    top_logprobs: int | None,
    score_prompt: bool,
    grammar: Grammar | None,
    prediction: list[int],
) -> Generate:
    """The worker's request; sampling fields that are left out come from the model.

    top_logprobs: alternatives to report with each token; None reports no log-probabilities.
    score_prompt: report those of the prompt, too.
    grammar:      what the answer must match; None leaves it free.
    prediction:   tokens the client expects.

    Raises InvalidParameter for token ids outside the vocabulary and speculation out of range.
    """
    for name, tokens in (("stop_token_ids", body.stop_token_ids), ("logit_bias", body.logit_bias)):
        _check_tokens(tokens, info, name)
    speculation = body.speculation.params() if body.speculation is not None else SpeculationParams()
    default = info.default_sampling
    top_k = body.top_k if body.top_k is not None else default.get("top_k", 0)
    return Generate(
        id=0,
        prompt=prompt,
        sampling=Sampling(
            temperature=body.temperature if body.temperature is not None else default.get("temperature", 1.0),
            top_p=body.top_p if body.top_p is not None else default.get("top_p", 1.0),
            top_k=int(top_k) if top_k > 0 else None,
            min_p=body.min_p if body.min_p is not None else default.get("min_p", 0.0),
            seed=body.seed,
            choice=0,
            repetition_penalty=body.repetition_penalty
            if body.repetition_penalty is not None
            else default.get("repetition_penalty", 1.0),
            presence_penalty=body.presence_penalty if body.presence_penalty is not None else 0.0,
            frequency_penalty=body.frequency_penalty if body.frequency_penalty is not None else 0.0,
            logit_bias=list(body.logit_bias.items()),
            min_tokens=min(body.min_tokens, info.max_context) if body.min_tokens is not None else 0,
        ),
        speculation=Speculation(
            mode=speculation.mode,
            max_nodes=speculation.max_nodes,
            acceptance=speculation.acceptance,
            epsilon=speculation.epsilon,
            delta=speculation.delta,
        ),
        # a request may name a number that fits no machine word
        max_tokens=min(max_tokens, info.max_context) if max_tokens is not None else None,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        top_logprobs=top_logprobs,
        score_prompt=score_prompt,
        grammar=grammar.text if grammar is not None else None,
        # what no answer can hold need not travel
        prediction=prediction[: info.max_context],
        cache_salt=None,
        detail=body.wants_detail,
    )


def predicted_tokens(body: GenerationFields, codec: TextCodec) -> list[int]:
    """The tokens of what the client expects, empty when it expects nothing."""
    if body.prediction is None:
        return []
    return codec.encode(body.prediction.content, add_special_tokens=False)


def several(
    generate: Generate, count: int, stream: Callable[[], TextStream], echo: Echo | None, first: int
) -> list[Wanted]:
    """`count` answers to one prompt, which differ by the choice that joins their seed.

    stream: starts the text of one of them.
    first:  index of the first one among all answers of the request.
    """
    wanted = []
    for choice in range(count):
        sampling = msgspec.structs.replace(generate.sampling, choice=choice)
        # the first answer reports what the prompt scores, for all
        score_prompt = generate.score_prompt and choice == 0
        one = msgspec.structs.replace(generate, sampling=sampling, score_prompt=score_prompt)
        wanted.append(Wanted(one, stream(), echo, first))
    return wanted


def _check_tokens(tokens: Iterable[int], info: WorkerInfo, param: str) -> None:
    outside = next((token for token in tokens if not 0 <= token < info.vocab_size), None)
    if outside is not None:
        raise InvalidParameter(f"token id {outside} is outside the vocabulary, 0 to {info.vocab_size - 1}", param)
