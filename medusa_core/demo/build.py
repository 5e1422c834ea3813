"""The recipe of the demo model: `python -m medusa_core.demo.build --work FOLDER`.

Every stage leaves its result in the work folder and is skipped or resumed when that is there.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from medusa_core.calibration import CALIBRATION_FILE
from medusa_core.checkpoints import load_heads, save_heads
from medusa_core.demo.card import measure_demo, model_card
from medusa_core.demo.chat import ChatMaker, ChatMix, Message
from medusa_core.demo.corpus import Corpus, Entry, build_corpus
from medusa_core.demo.measure import ANSWER_TOKENS, CONTINUATION_TOKENS
from medusa_core.demo.package import assemble, export_model
from medusa_core.demo.packing import Mixture, chat_ids, pack, source_ids
from medusa_core.demo.pretrain import ModelShape, PretrainPlan, build_model, evaluate, pretrain
from medusa_core.demo.prompts import distillation_prompts, held_out_prompts, source_texts
from medusa_core.demo.tokenizer import train_tokenizer
from medusa_core.loading import choose_device
from medusa_core.training.base import FrozenBase
from medusa_core.training.calibrate import calibrate_heads
from medusa_core.training.distill import DistillPlan, distill
from medusa_core.training.encoding import Example, encode, read_examples
from medusa_core.training.loop import STATE, LoopPlan, fit
from medusa_core.training.medusa2 import JointRecipe
from medusa_core.training.packing import Examples, PackedRows
from medusa_core.training.plan import JointPlan, TrainPlan, fingerprint
from medusa_core.training.records import Message as Turn
from medusa_core.training.records import Record, read_records
from medusa_core.training.trainer import BaseOptions, train
from medusa_core.training.workers import Alone

__all__ = [
    "as_record",
    "corpus_stage",
    "distill_stage",
    "export_stage",
    "heads_stage",
    "held_out_losses",
    "held_out_rows",
    "joint_examples",
    "joint_stage",
    "last_tokens",
    "main",
    "pretrain_stage",
    "tokenizer_stage",
    "trained_entries",
    "training_mixture",
    "write_lines",
]

log = logging.getLogger(__name__)

CHAT_EPOCHS = 6
CHAT_SHARE = 0.5
ROUNDS = 2
JOINT_PASSES = {"known": 1, "invented": 2, "beginnings": 1}
"""How often joint training sees the model's own answers of each kind; the unknown is what heads find hardest."""
JOINT_CONVERSATION_PASSES = 2
EVALUATION_ROWS = 16
LONGEST_ANSWER = 2048
WATCHED = {"conversations": "chat", "source": "source"}
DISTILL_BATCH = 128
HEADS_PLAN = TrainPlan(
    shared_lm_head=False,
    epochs=4,
    learning_rate=1e-2,
    max_length=512,
    rows_per_pass=8,
    passes_per_step=1,
    compile=True,
)
# What is trained is the whole base, on its own answers and on the truth: it has little to lose and much to learn.
JOINT = JointPlan(
    epochs=2, learning_rate=5e-4, heads_rate=3.0, heads_weight=0.6, self_distilled=False, adapter_rank=None
)


def corpus_stage(work: Path) -> Corpus:
    """Read the standard library once and keep the split."""
    path = work / "corpus.json"
    if not path.exists():
        build_corpus().save(path)
    return Corpus.load(path)


def tokenizer_stage(work: Path, corpus: Corpus) -> PreTrainedTokenizerFast:
    """Train the tokenizer on what the model is trained on."""
    folder = work / "tokenizer"
    if not folder.exists():
        maker = ChatMaker(trained_entries(corpus), ChatMix(), seed=0)
        spoken = [message["content"] for messages in maker.epoch() for message in messages]
        written = [document.text for document in corpus.documents if not document.held_out]
        train_tokenizer([*written, *spoken, *spoken]).save_pretrained(folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def pretrain_stage(
    work: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan, device: torch.device
) -> None:
    """Train the base model."""
    model = build_model(ModelShape(), tokenizer, plan.seed)
    mixture, watched = training_mixture(corpus, tokenizer, plan), held_out_rows(corpus, tokenizer, plan)
    pretrain(model, mixture, watched, plan, work / "pretrain", device)


def training_mixture(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan) -> Mixture:
    """Conversations and source text, trained entries and files only."""
    filler = int(tokenizer.pad_token_id)
    maker = ChatMaker(trained_entries(corpus), ChatMix(), plan.seed)
    chat = pack(chat_ids(tokenizer, maker, CHAT_EPOCHS), plan.length, filler)
    source = source_ids(tokenizer, (document for document in corpus.documents if not document.held_out))
    return Mixture(chat, source, filler, CHAT_SHARE, plan.seed)


def held_out_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan) -> dict[str, Tensor]:
    """A few rows [B, T] of held-out conversations and files, to watch the loss on."""
    filler = int(tokenizer.pad_token_id)
    maker = ChatMaker([entry for entry in corpus.entries if entry.held_out], ChatMix(), plan.seed)
    chat = pack(chat_ids(tokenizer, maker, 1), plan.length, filler)[:EVALUATION_ROWS]
    files = [document for document in corpus.documents if document.held_out]
    stream = source_ids(tokenizer, files)
    rows = stream[: len(stream) // plan.length * plan.length].reshape(-1, plan.length)
    spread = rows[:: max(1, len(rows) // EVALUATION_ROWS)][:EVALUATION_ROWS]
    return {"chat": torch.from_numpy(chat.astype("int64")), "source": torch.from_numpy(spread.astype("int64"))}


def trained_entries(corpus: Corpus) -> list[Entry]:
    """The entries that training may see."""
    return [entry for entry in corpus.entries if not entry.held_out]


def export_stage(work: Path, tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan) -> Path:
    """Write the pre-trained model in bf16; everything after it is measured and trained on the rounded weights."""
    folder = work / "model"
    if not (folder / "generation_config.json").exists():
        model = build_model(ModelShape(), tokenizer, plan.seed)
        state = torch.load(work / "pretrain" / STATE, map_location="cpu", weights_only=True)
        model.load_state_dict(state["modules"]["model"], strict=False)  # the tied LM head is not kept twice
        export_model(model, tokenizer, folder)
    return folder


def distill_stage(folder: Path, corpus: Corpus, model: Path, seed: int, device: str) -> Path:
    """The model answers for its heads; a part of the original source is added as it is."""
    data = folder / "heads.jsonl"
    if data.exists():
        return data
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    for kind, prompts in distillation_prompts(corpus, seed).items():
        asked, answered = folder / f"{kind}.jsonl", folder / f"{kind}_answered.jsonl"
        write_lines(asked, prompts)
        max_tokens = ANSWER_TOKENS if "messages" in prompts[0] else CONTINUATION_TOKENS
        distill(str(model), asked, answered, DistillPlan(max_tokens=max_tokens, batch_size=DISTILL_BATCH), device)
        parts.append(answered.read_text(encoding="utf-8"))
    parts += [json.dumps(record) + "\n" for record in source_texts(corpus, seed)]
    partial = data.with_name(data.name + ".partial")
    partial.write_text("".join(parts), encoding="utf-8")
    partial.replace(data)
    return data


def heads_stage(folder: Path, model: Path, data: Path, plan: TrainPlan, device: str) -> Path:
    """Train and calibrate heads on the frozen base."""
    heads = folder / "heads"
    if not (heads / CALIBRATION_FILE).exists():
        train(BaseOptions(str(model), device), data, heads, plan)
    return heads


def joint_stage(
    folder: Path, corpus: Corpus, model: Path, heads: Path, plan: TrainPlan, joint: JointPlan, device: torch.device
) -> tuple[Path, Path]:
    """Train base and heads together on the folder's answers; writes and returns the new model's and heads' folders."""
    new_model, new_heads = folder / "model", folder / "joint_heads"
    if (new_heads / CALIBRATION_FILE).exists():
        return new_model, new_heads
    base = FrozenBase.load(str(model), device)
    base_model = cast(Any, base.model)
    base_model.float().requires_grad_(True)
    trained = load_heads(heads, base.lm_head).float().requires_grad_(True)
    examples, held_out = joint_examples(folder, corpus, base.tokenizer, plan, trained.config.num_heads)
    rows = PackedRows.pack(examples, plan.max_length, plan.seed)
    measured = PackedRows.pack(held_out, plan.max_length, plan.seed)
    recipe = JointRecipe(base, None, trained.train(), rows, measured, plan, joint, Alone(device))
    loop = LoopPlan("joint training", recipe.steps, plan.gradient_norm, plan.save_every, None, None)
    fit(recipe, loop, folder / "joint", fingerprint(plan, joint, rows.examples.digest()), Alone(device))
    export_model(base_model, cast(Any, base.tokenizer), new_model)
    save_heads(new_heads, trained.requires_grad_(False), str(new_model))
    rounded = FrozenBase.load(str(new_model), torch.device("cpu"))
    calibrated = calibrate_heads(rounded, trained.cpu(), measured.in_order(plan.rows_per_pass))
    calibrated.save(new_heads / CALIBRATION_FILE)
    return new_model, new_heads


def joint_examples(
    folder: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, plan: TrainPlan, num_heads: int
) -> tuple[Examples, Examples]:
    """What base and heads are trained on together, and what measures them.

    The model's own answers that ended, its continuations, and the conversations with the true answers. Measured is on
    a part of the answers that heads were trained on, which the first part leaves out.
    """
    examples: list[Example] = []
    for kind, passes in JOINT_PASSES.items():
        answered = [r for r in read_records(folder / f"{kind}_answered.jsonl") if r.text is not None or not r.is_cut]
        own = Examples.of(encode(record, tokenizer) for record in answered)
        kept, _ = own.split(plan.held_out_percent)
        examples += [last_tokens(example, plan.max_length, num_heads) for example in kept] * passes
    maker = ChatMaker(trained_entries(corpus), ChatMix(), seed=7)
    talks = [messages for _ in range(JOINT_CONVERSATION_PASSES) for messages in maker.epoch()]
    said = Examples.of(encode(as_record(messages), tokenizer) for messages in talks)
    examples += said.split(plan.held_out_percent)[0]
    answers = Examples.of(read_examples(folder / "heads.jsonl", tokenizer, LONGEST_ANSWER))
    return Examples.of(examples), answers.split(plan.held_out_percent)[1]


def last_tokens(example: Example, length: int, num_heads: int) -> Example:
    """The end of an example, which the model wrote itself; nobody can foresee the first tokens of a text."""
    tokens, judged = example.tokens[-length:], example.judged[-length:]
    unforeseen = min(num_heads + 1, len(judged))
    return Example(tokens, (False,) * unforeseen + judged[unforeseen:])


def as_record(messages: list[Message]) -> Record:
    """A conversation made here as a record of a data file."""
    return Record(0, tuple(Turn(message["role"], message["content"]) for message in messages), None, is_cut=False)


def held_out_losses(checkpoint: Path, corpus: Corpus, plan: PretrainPlan) -> dict[str, float]:
    """Held-out nats per token of a finished checkpoint, by name."""
    base = FrozenBase.load(str(checkpoint), torch.device("cpu"))
    model, tokenizer = cast(Any, base.model), cast(Any, base.tokenizer)
    rows = held_out_rows(corpus, tokenizer, plan)
    return {name: evaluate(model, rows[kind], tokenizer.pad_token_id) for name, kind in WATCHED.items()}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the recipe makes")
    parser.add_argument("--out", type=Path, help="where the finished checkpoint goes; default: WORK/checkpoint")
    parser.add_argument("--until", choices=("pretrain", "checkpoint"), default="checkpoint", help="last stage to run")
    parser.add_argument("--steps", type=int, help="pre-training steps; may be changed when resuming")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true", help="train without a compiler at hand, half as fast")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    plan = replace(PretrainPlan(), compile=not options.no_compile)
    plan = plan if options.steps is None else replace(plan, steps=options.steps)
    heads_plan = replace(HEADS_PLAN, compile=not options.no_compile)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    corpus = corpus_stage(work)
    tokenizer = tokenizer_stage(work, corpus)
    pretrain_stage(work, corpus, tokenizer, plan, device)
    if options.until == "pretrain":
        return
    model = export_stage(work, tokenizer, plan)
    heads: Path | None = None
    for number in range(1, ROUNDS + 1):
        folder = work / f"round{number}"
        data = distill_stage(folder, corpus, model, number, options.device)
        if heads is None:
            heads = heads_stage(folder, model, data, heads_plan, options.device)
        model, heads = joint_stage(folder, corpus, model, heads, heads_plan, JOINT, device)
    assert heads is not None, "there is a first round"
    out: Path = options.out if options.out is not None else work / "checkpoint"
    assemble(model, heads, out)
    write_lines(out.parent / "held_out.jsonl", held_out_prompts(corpus))
    results = measure_demo(out, corpus, held_out_losses(out, corpus, plan))
    (out / "README.md").write_text(model_card(corpus, plan, heads_plan, JOINT, results), encoding="utf-8")


if __name__ == "__main__":
    main()
