from typing import Any

import pytest

from medusa_core.checkpoints.claims import false_claims
from medusa_core.config import HeadsConfig

OWN = HeadsConfig(5, 1, 16, 40, False)

CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"medusa_num_heads": 2}, "2 heads, the file holds 5"),
    "blocks": ({"medusa_num_layers": 3}, "3 blocks per head, the file holds 1"),
    "heads of ModelOpt": ({"medusa": {"num_medusa_heads": 3}}, "3 heads, the file holds 5"),
    "hidden size": ({"hidden_size": 4096}, "4096 as hidden size, the file holds 16"),
    "shared": ({"version": "2"}, "version 2"),
    "no biases": ({"model_type": "medusa"}, "vLLM drops"),
    "vocabulary": ({"model_type": "medusa", "truncated_vocab_size": 9}, "9 drafted tokens, the file holds 40"),
    "original": ({"model_type": "medusa", "original_lm_head": True}, "the original LM head"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_false_claim_is_found(case: str) -> None:
    config, said = CLAIMS[case]
    layout = "vllm" if "model_type" in config else "medusa-v1"

    assert any(said in claim for claim in false_claims(config, layout, OWN, has_bias=True))


def test_true_claims_and_those_of_the_base_are_no_false_ones() -> None:
    of_the_base = {"num_heads": 32, "num_hidden_layers": 24, "model_type": "llama"}

    assert false_claims({"medusa_num_heads": 5, "version": "1", **of_the_base}, "full", OWN, has_bias=True) == []
    assert false_claims({}, "medusa-v1", OWN, has_bias=True) == []
