import math
from pathlib import Path

import torch

from medusa_core.demo.build import (
    corpus_stage,
    held_out_losses,
    held_out_rows,
    joint_examples,
    last_tokens,
    tokenizer_stage,
    training_mixture,
    write_lines,
)
from medusa_core.demo.corpus import Corpus, Document, Entry
from medusa_core.demo.package import export_model
from medusa_core.demo.pretrain import ModelShape, PretrainPlan, build_model
from medusa_core.training.encoding import Example
from medusa_core.training.plan import TrainPlan

PLAN = PretrainPlan(length=64, compile=False)
SOURCE = "def dedent(text):\n    return text.strip()\n" * 20
CORPUS = Corpus(
    (Document("seen.py", SOURCE, False), Document("unseen.py", SOURCE.replace("dedent", "zebra"), True)),
    tuple(Entry(f"box.name{n}", "function", f"Answer {n}.", held_out=n == 3) for n in range(6)),
)


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    CORPUS.save(tmp_path / "corpus.json")

    assert corpus_stage(tmp_path) == CORPUS
    first = tokenizer_stage(tmp_path, CORPUS)
    assert tokenizer_stage(tmp_path, Corpus((), ())).get_vocab() == first.get_vocab()


def test_training_sees_nothing_that_is_held_out(tmp_path: Path) -> None:
    own = tokenizer_stage(tmp_path, CORPUS)
    mixture = training_mixture(CORPUS, own, PLAN)
    chat, source = own.decode(mixture.chat.flatten().tolist()), own.decode(mixture.source.tolist())

    assert "box.name2" in chat
    assert "box.name3" not in chat
    assert "dedent" in source
    assert "zebra" not in source


def test_what_is_watched_is_held_out(tmp_path: Path) -> None:
    own = tokenizer_stage(tmp_path, CORPUS)
    rows = held_out_rows(CORPUS, own, PLAN)

    assert "box.name3" in own.decode(rows["chat"].flatten().tolist())
    assert "zebra" in own.decode(rows["source"].flatten().tolist())
    assert rows["source"].dtype == torch.int64


def test_joint_training_sees_own_answers_that_ended_and_nothing_held_out(tmp_path: Path) -> None:
    own = tokenizer_stage(tmp_path, CORPUS)
    question = {"role": "user", "content": "Well?"}
    for kind in ("known", "invented"):
        answers = [*((f"Finished {kind} {n}.", "stop") for n in range(20)), (f"Torn {kind}", "length")]
        write_lines(
            tmp_path / f"{kind}_answered.jsonl",
            [
                {"messages": [question, {"role": "assistant", "content": text}], "finish_reason": reason}
                for text, reason in answers
            ],
        )
    beginnings = [{"text": f"import this{n}\n" * 30, "finish_reason": "length"} for n in range(20)]
    write_lines(tmp_path / "beginnings_answered.jsonl", beginnings)

    answers = [{"text": f"import antigravity  # {n}\n" * 4} for n in range(40)]
    write_lines(tmp_path / "heads.jsonl", answers)

    rows, measured = joint_examples(tmp_path, CORPUS, own, TrainPlan(max_length=64, held_out_percent=10.0), num_heads=4)

    seen, judged = own.decode(rows.tokens.tolist()), own.decode(rows.tokens[rows.judged].tolist())
    assert "antigravity" not in seen
    assert "antigravity" in own.decode(measured.tokens.tolist())
    for kind, passes in (("known", 1), ("invented", 2)):
        times = [seen.count(f"Finished {kind} {n}.") for n in range(20)]
        assert set(times) == {0, passes}  # some are held out
        assert times.count(0) < 10
    assert "import this" in judged
    assert "Torn" not in seen
    assert "box.name3" not in seen
    assert "Well?" not in judged


def test_the_end_of_a_long_text_is_kept_and_its_first_tokens_are_not_judged() -> None:
    example = last_tokens(Example(tuple(range(20)), (True,) * 20), length=12, num_heads=4)

    assert example.tokens == tuple(range(8, 20))
    assert example.judged == (False,) * 5 + (True,) * 7


def test_the_losses_that_are_quoted_are_the_finished_checkpoints(tmp_path: Path) -> None:
    own = tokenizer_stage(tmp_path, CORPUS)
    shape = ModelShape(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32)
    export_model(build_model(shape, own, seed=0), own, tmp_path / "model")

    losses = held_out_losses(tmp_path / "model", CORPUS, PLAN)

    assert set(losses) == {"conversations", "source"}
    # An untrained model knows nothing: about the logarithm of its vocabulary.
    assert all(abs(loss - math.log(len(own))) < 1.0 for loss in losses.values())
