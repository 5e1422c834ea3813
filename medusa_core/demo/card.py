"""The model card: what the demo model was made from, by which commands, and what was measured."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from medusa_core.calibration import Calibration
from medusa_core.demo.corpus import Corpus, Entry, draw
from medusa_core.demo.measure import ANSWER_TOKENS, CONTINUATION_TOKENS, TREE_NODES, Measurer, Speculated
from medusa_core.demo.pretrain import PretrainPlan
from medusa_core.demo.prompts import HELD_OUT_PREFIXES, HELD_OUT_QUESTIONS, held_out_prompts
from medusa_core.training.plan import JointPlan, TrainPlan

__all__ = ["Results", "is_recalled", "measure_demo", "model_card"]

SAMPLED_NAMES = 200
WELL_KNOWN = (
    "textwrap.dedent", "os.path.join", "os.path.exists", "os.listdir", "json.dumps", "json.loads", "len", "sorted",
    "str.split", "str.strip", "list.append", "dict.get", "random.randint", "math.sqrt", "shutil.copyfile", "re.sub",
    "functools.lru_cache", "collections.Counter", "itertools.chain", "time.sleep", "bisect.bisect_left",
)  # fmt: skip
"""Names people ask about first; one that is held out, or not documented, is left out of the count."""


@dataclass(frozen=True)
class Results:
    """Everything the card quotes.

    speculated:  with heads and prompt lookup in one tree; heads_alone: without lookup.
    recalled:    of the sampled trained names, how many are answered with exactly the documentation.
    well_known:  answered exactly, by name.
    ended:       held-out questions whose answer ended by itself, and how many were asked.
    """

    speculated: Speculated
    heads_alone: Speculated
    calibration: Calibration
    recalled: tuple[int, int]
    well_known: dict[str, bool]
    ended: tuple[int, int]
    losses: dict[str, float]


def measure_demo(folder: Path, corpus: Corpus, losses: dict[str, float]) -> Results:
    """Measure the finished checkpoint, bf16 rounding included.

    losses: held-out nats per token of the same checkpoint.
    """
    measurer = Measurer(folder, folder / "heads", max(TREE_NODES))
    alone = Measurer(folder, folder / "heads", max(TREE_NODES), prompt_lookup=False)
    prompts = held_out_prompts(corpus)
    trained = {entry.name: entry for entry in corpus.entries if not entry.held_out and entry.kind != "topic"}
    sampled = sorted(trained.values(), key=lambda entry: draw(f"recall:{entry.name}"))[:SAMPLED_NAMES]
    questions = [measurer.answer(prompt, max(TREE_NODES)) for prompt in prompts if "messages" in prompt]
    return Results(
        speculated=measurer.tokens_per_step(prompts, TREE_NODES),
        heads_alone=alone.tokens_per_step(prompts, TREE_NODES),
        calibration=Calibration.load(folder / "heads" / "calibration.json"),
        recalled=(sum(is_recalled(measurer, entry) for entry in sampled), len(sampled)),
        well_known={name: is_recalled(measurer, trained[name]) for name in WELL_KNOWN if name in trained},
        ended=(sum(answer.ended for answer in questions), len(questions)),
        losses=losses,
    )


def is_recalled(measurer: Measurer, entry: Entry) -> bool:
    """Whether the greedy answer to the plain question is the documentation, letter for letter, and then ends."""
    question = {"messages": [{"role": "user", "content": f"What does {entry.name} do?"}]}
    answer = measurer.answer(question, max(TREE_NODES))
    return answer.ended and answer.text.strip() == entry.answer


def model_card(corpus: Corpus, pretraining: PretrainPlan, heads: TrainPlan, joint: JointPlan, results: Results) -> str:
    """The card as Markdown."""
    entries, documents = corpus.entries, corpus.documents
    unseen = sum(entry.held_out for entry in entries)
    unseen_files = sum(document.held_out for document in documents)
    right = [name for name, is_right in results.well_known.items() if is_right]
    wrong = [name for name, is_right in results.well_known.items() if not is_right]
    accuracies = results.calibration.accuracies
    lines = [
        *FRONT,
        "## Data",
        "",
        f"The standard library of Python {platform.python_version()}, as found in the interpreter that ran the recipe:",
        f"{len(documents) - unseen_files} source files and help topics, and {len(entries) - unseen} documented names",
        "turned into questions and answers (signature and first paragraphs of the docstring). Python and its",
        "documentation are under the PSF License Agreement. Nothing was downloaded; the only other text is a handful",
        "of greetings and questions.",
        "",
        f"Held out by hash, never trained on: {unseen} names and {unseen_files} files and topics. Docstrings of",
        "held-out names are cut from the source files, and whatever repeats a held-out docstring is held out with it.",
        "",
        "## Recipe",
        "",
        "```",
        f"python -m medusa_core.demo.build --work WORK --steps {pretraining.steps}",
        "```",
        "",
        f"Pre-training: {pretraining.steps} steps of {pretraining.tokens_per_step} tokens, half conversations and",
        f"half source, Muon and AdamW. The model then answered {QUESTIONS} itself (greedy),",
        f"and {heads.num_heads} heads of {_counted(heads.num_layers, 'residual block')} with",
        f"{'the shared' if heads.shared_lm_head else 'their own'} LM heads were trained on these answers and on some",
        f"original source: Medusa-1, {heads.epochs} passes. Then base and heads were trained together in",
        f"{joint.epochs} passes over more of both, the heads' loss weighing {joint.heads_weight}",
        "(Medusa-2's idea, without the adapters): the base remembers what it learnt, and its hidden states look",
        "further ahead. Answering and joint training were done twice, so that the second time the heads learnt from",
        "the answers of a base made for them.",
        "",
        "## Measured",
        "",
        f"After rounding to bf16, computed in float32, greedy, torch {torch.__version__.split('+')[0]},",
        f"transformers {transformers.__version__}.",
        "",
        *(f"- Held-out loss, {name}: {loss:.3f} nats per token" for name, loss in results.losses.items()),
        f"- Trained names answered with their documentation letter for letter: {results.recalled[0]} of"
        f" {results.recalled[1]} sampled",
        f"- The same for names people ask about first: {len(right)} of {len(right) + len(wrong)}"
        f" ({', '.join(right)}{'; not: ' + ', '.join(wrong) if wrong else ''})",
        f"- Answers to held-out questions that end by themselves within {ANSWER_TOKENS} tokens:"
        f" {results.ended[0]} of {results.ended[1]}",
        "",
        "Tokens per step (emitted tokens by verifying passes, bonus included), dynamic tree of N nodes, root included,",
        "of what the heads guess and what followed earlier in the sequence (in brackets: of the heads alone),",
        f"on {HELD_OUT_QUESTIONS} held-out questions (up to {ANSWER_TOKENS} tokens) and {HELD_OUT_PREFIXES} beginnings",
        f"of held-out source (up to {CONTINUATION_TOKENS} tokens):",
        "",
        "| N | all | questions | source |",
        "|---|---|---|---|",
        *(_speed_row(nodes, results) for nodes in results.speculated.everything),
        "",
        "Accuracy of the heads on held-out distilled text:",
        "",
        "| head | top-1 | top-5 | temperature |",
        "|---|---|---|---|",
        *(
            f"| {head} | {shares[0]:.3f} | {sum(shares[:5]):.3f} | {temperature:.2f} |"
            for head, (shares, temperature) in enumerate(
                zip(accuracies, results.calibration.temperatures, strict=True), start=1
            )
        ),
        "",
        *LIMITS,
    ]
    return "\n".join(lines) + "\n"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number > 1 else ''}"


def _speed_row(nodes: int, results: Results) -> str:
    merged, alone = results.speculated, results.heads_alone
    pairs = [
        (merged.everything, alone.everything),
        (merged.questions, alone.questions),
        (merged.source, alone.source),
    ]
    cells = [f"{together[nodes]:.2f} ({heads[nodes]:.2f})" for together, heads in pairs]
    return f"| {nodes} | {' | '.join(cells)} |"


QUESTIONS = "questions about trained names and about invented ones, and continued beginnings of trained source files"

FRONT = (
    "---",
    "license: apache-2.0",
    "language: [en]",
    "pipeline_tag: text-generation",
    "---",
    "",
    "# Medusa Server demo model",
    "",
    "A Llama of 5.2 million parameters that learnt Python's standard library, with Medusa draft heads in `heads/`.",
    "It is there to show and to test tree decoding on any machine, not to be relied on. Weights: Apache-2.0.",
    "",
)

LIMITS = (
    "## Limits",
    "",
    "It knows the standard library and nothing else. Asked about a name that it did not learn, it invents a signature",
    "and a description in the right form. Signatures and descriptions may be mixed up even for names it has seen. It",
    "continues Python source plausibly in form, seldom in meaning. It does not follow instructions, and longer",
    "conversations than two questions were not trained. Docstrings come from one Python version.",
    "Greedy continuations of source tend to repeat themselves, which is part of why lookup does so well on them.",
)
