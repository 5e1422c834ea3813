"""All peers answer the same prompts in turn, so that what else the machine does falls on all of them alike."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.through_http.asking import Streamed, StreamPeer
from benchmarks.through_http.figures import Limits
from medusa_core.evaluation.prompts import Prompt
from medusa_core.sampling import SamplingParams

__all__ = ["ask_in_turn", "bytes_per_step", "copy_bandwidth", "limits_of"]

# Answers of each peer before anything is timed.
WARM_UPS = 3
COPIES = 200


def ask_in_turn(
    peers: Mapping[str, StreamPeer],
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    max_tokens: int,
    repeats: int,
    watch: Callable[[str], None],
) -> dict[str, dict[int, list[Streamed]]]:
    """Answers by peer and by the prompt's line, one for each repeat.

    Another peer begins at every prompt, so that none always follows the same one.
    """
    names = list(peers)
    for name in names:
        watch(f"warming up {name}")
        for prompt in prompts[:WARM_UPS]:
            peers[name].ask(prompt, sampling, max_tokens)
    answers: dict[str, dict[int, list[Streamed]]] = {name: {prompt.line: [] for prompt in prompts} for name in names}
    for repeat in range(repeats):
        for index, prompt in enumerate(prompts):
            watch(f"repeat {repeat + 1} of {repeats}, prompt {index + 1} of {len(prompts)}")
            first = (index + repeat) % len(names)
            for name in names[first:] + names[:first]:
                answers[name][prompt.line].append(peers[name].ask(prompt, sampling, max_tokens))
    return answers


def bytes_per_step(folder: Path, bytes_per_weight: int, rows: float) -> float:
    """What one step of one token reads: all linear weights, the LM head among them, and the rows of the cache.

    The embedding table is read for one token only, unless it is the LM head as well.
    """
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = 0
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if "embed_tokens" not in name or config.get("tie_word_embeddings", False):
                    weights += torch.Size(tensors.get_slice(name).get_shape()).numel()
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    row = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_dim
    return bytes_per_weight * (weights + rows * row)


def copy_bandwidth(size: int) -> float:
    """Bytes per second of copying so many bytes, read and written ones together, one thread.

    A model that fits into the processor's cache is read from there step after step, and so is this block.
    """
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    seconds = []
    for _ in range(COPIES):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    # what else the machine does only ever adds to a copy
    return 2 * size / sorted(seconds)[COPIES // 4]


def limits_of(folder: Path, prompts: Sequence[Prompt], max_tokens: int) -> Limits:
    """What this machine's memory allows a float32 model on these prompts, with an answer half written."""
    rows = sum(len(prompt.tokens) for prompt in prompts) / len(prompts) + max_tokens / 2
    read = bytes_per_step(folder, 4, rows)
    return Limits(copy_bandwidth(int(read)), read)
