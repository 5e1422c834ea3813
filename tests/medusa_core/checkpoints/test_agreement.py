from pathlib import Path

import pytest

from medusa_core.checkpoints.agreement import refuse_another_tokenizer
from medusa_core.demo.tokenizer import train_tokenizer
from medusa_core.errors import HeadsMismatch


def saved(folder: Path, text: str, extra: str | None = None) -> Path:
    tokenizer = train_tokenizer((text,), 300)
    if extra is not None:
        tokenizer.add_tokens([extra])
    tokenizer.save_pretrained(folder)
    return folder


def test_heads_that_come_with_another_tokenizer_than_the_bases_are_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "the cat sat on the mat and the cat sat")
    heads = saved(tmp_path / "heads", "quick brown foxes quickly jump quick jumps")

    with pytest.raises(HeadsMismatch, match=r"whose id \d+ is '.*', in that of .*; they belong to another base"):
        refuse_another_tokenizer(heads, str(base))


def test_the_same_tokenizer_agrees_also_where_one_has_tokens_added(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "the cat sat on the mat")
    heads = saved(tmp_path / "heads", "the cat sat on the mat", extra="<pad>")

    refuse_another_tokenizer(heads, str(base))
    refuse_another_tokenizer(base, str(heads))
    refuse_another_tokenizer(base, str(base))


def test_heads_without_a_tokenizer_and_unreadable_ones_prove_nothing(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "the cat sat on the mat")
    refuse_another_tokenizer(tmp_path, str(base))

    (tmp_path / "tokenizer.json").write_text("{")
    refuse_another_tokenizer(tmp_path, str(base))
