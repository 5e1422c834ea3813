from pathlib import Path

import pytest
import torch

from medusa_core.errors import ModelNotFound
from medusa_core.training.base import FrozenBase, collate
from medusa_core.training.encoding import Example
from tests.medusa_core.training.cast import base, saved_base

CPU = torch.device("cpu")


def test_hidden_states_are_those_the_lm_head_reads() -> None:
    own = base()
    tokens = torch.tensor([[5, 6, 7]])

    logits = own.hidden(tokens) @ own.lm_head.T

    torch.testing.assert_close(logits, own.model(input_ids=tokens).logits)


def test_padding_on_the_right_changes_no_hidden_state() -> None:
    own = base()
    short, long = Example((5, 6, 7), (True,) * 3), Example((8, 9, 10, 11, 12, 13), (True,) * 6)
    tokens, _ = collate([short, long], CPU)

    torch.testing.assert_close(own.hidden(tokens)[0, :3], own.hidden(torch.tensor([[5, 6, 7]]))[0])


def test_padding_is_never_judged_and_token_zero_may_be() -> None:
    tokens, judged = collate([Example((0, 2), (True, True)), Example((1, 1, 1), (False, True, True))], CPU)

    assert tokens.tolist() == [[0, 2, 0], [1, 1, 1]]
    assert judged.tolist() == [[True, True, False], [False, True, True]]


def test_a_loaded_base_is_frozen(tmp_path: Path) -> None:
    loaded = FrozenBase.load(str(saved_base(tmp_path)), CPU)

    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.lm_head.dtype == torch.float32


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot load the model"):
        FrozenBase.load(str(tmp_path), CPU)
