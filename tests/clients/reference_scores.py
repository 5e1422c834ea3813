"""Log-likelihoods by transformers alone, to hold against what the server reports; runs where torch is.

`python -m tests.clients.reference_scores CHECKPOINT` reads from standard input a JSON list of [prefix, continuation],
each a list of token ids, and writes [sum of log-probabilities, whether each token was the likeliest] for each pair.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM


def scores(checkpoint: str, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for prefix, continuation in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([prefix + continuation])).logits[0, len(prefix) - 1 : -1]
        expected = torch.tensor(continuation)
        chosen = logits.log_softmax(-1).gather(1, expected[:, None])
        found.append((chosen.sum().item(), bool((logits.argmax(-1) == expected).all())))
    return found


if __name__ == "__main__":
    json.dump(scores(sys.argv[1], json.load(sys.stdin)), sys.stdout)
