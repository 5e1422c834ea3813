"""transformers.generate as a peer: what people use today, on the same weights."""

import time
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from medusa_core.config import model_location, split_revision
from medusa_core.evaluation.answers import Answer
from medusa_core.evaluation.prompts import Prompt
from medusa_core.generation import EngineInfo
from medusa_core.sampling import SamplingParams

__all__ = ["GeneratePeer"]


class GeneratePeer:
    """A second copy of the model, decoded greedily by transformers itself."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, info: EngineInfo) -> Self:
        """The model that an engine has loaded, in the same dtype on the same device."""
        dtype: torch.dtype = getattr(torch, info.dtype)
        name, revision = split_revision(model_location(info.model))
        model: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, trust_remote_code=False)
        return cls(model.to(info.device))

    def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
        """See Peer.answer; greedy only, since its noise would be another."""
        assert sampling.temperature == 0.0, "the plan of a comparison with transformers.generate is greedy"
        clock = _FirstTokenClock()
        ids = torch.tensor([prompt.tokens], device=self._model.device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            streamer=clock,
            pad_token_id=0,
        )
        tokens = tuple(output[0, len(prompt.tokens) :].tolist())
        return Answer(tokens, time.perf_counter() - clock.started, (), {})


class _FirstTokenClock(BaseStreamer):
    """Notes when generate hands out its first new token, which is where decode time starts."""

    def __init__(self) -> None:
        self.calls, self.started = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with every new token."""
        self.calls += 1
        if self.calls == 2:
            self.started = time.perf_counter()

    def end(self) -> None:
        """Called once at the end."""
