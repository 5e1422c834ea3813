"""lm-evaluation-harness over HTTP, held against transformers on the same model and against the server asked alone."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.clients.conftest import DEMO_CHECKPOINT, ROOT, SERVER_BIN, Server

# What follows in Python, by somebody who has learnt the language; the last two are labelled wrongly on purpose, so that
# the accuracy is neither 0 nor 1.
QUESTIONS: list[dict[str, Any]] = [
    {"text": "import os\nimport", "choices": [" sys", " return", " None"], "label": 0},
    {"text": "def __init__(", "choices": ["raise", "self", "42"], "label": 1},
    {
        "text": "    try:\n        value = int(text)\n    except",
        "choices": [" Lambda", " yield", " ValueError"],
        "label": 2,
    },
    {"text": 'class Thread:\n    def run(self):\n        """', "choices": ["Run the", "zebra", "=== "], "label": 0},
    {"text": "    return", "choices": [" class", " self", " import"], "label": 0},
    {"text": "if __name__ ==", "choices": [" '__main__'", " **", " while"], "label": 2},
]
PROMPTS = ["def dirname(path):\n", "class Stack:\n    def push(self, item):\n", "import os\nimport sys\n"]
# six, and OpenAI takes four
STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n\n"]
ANSWER_TOKENS = 48

MULTIPLE_CHOICE = {
    "task": "python_next",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATION = {
    "task": "python_body",
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": STOPS, "max_gen_toks": ANSWER_TOKENS, "temperature": 0, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
PERPLEXITY = {
    "task": "python_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)


def evaluate(server: Server, task: dict[str, Any], docs: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The results of one task, with the samples in the order of the documents."""
    name, kind = task["task"], options.pop("kind", "local-completions")
    endpoint = "chat/completions" if "chat" in kind else "completions"
    arguments = {
        "model": server.model,
        "base_url": f"{server.base_url}/{endpoint}",
        "tokenizer": str(DEMO_CHECKPOINT),
        "max_length": 2048,
        "max_retries": 1,
        **options,
    }
    found = simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[
            {**task, "test_split": "test", "custom_dataset": lambda **_: DatasetDict(test=Dataset.from_list([*docs]))}
        ],
        # its own thousands of tasks take eight seconds to list
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template="chat" in kind,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return {"results": found["results"][name], "samples": samples}


def reference_scores(pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    ended = subprocess.run(
        [str(SERVER_BIN / "python"), "-m", "tests.clients.reference_scores", str(DEMO_CHECKPOINT)],
        input=json.dumps(pairs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [(total, is_greedy) for total, is_greedy in json.loads(ended.stdout)]


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, choice: str) -> tuple[list[int], list[int]]:
    """As the harness splits them: the choice is what the whole has more than the text."""
    prefix, whole = tokenizer(text).input_ids, tokenizer(text + choice).input_ids
    return prefix, whole[len(prefix) :]


@pytest.fixture(scope="module")
def expected(tokenizer: PreTrainedTokenizerBase) -> list[list[tuple[float, bool]]]:
    """Of each question, each choice: its log-likelihood, and whether greedy decoding would write it."""
    pairs = [encoded(tokenizer, one["text"], choice) for one in QUESTIONS for choice in one["choices"]]
    scores = iter(reference_scores(pairs))
    return [[next(scores) for _ in one["choices"]] for one in QUESTIONS]


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 4}, {"num_concurrent": 4}, {"tokenized_requests": False}],
    ids=["one by one", "in batches", "at once", "as text"],
)
def test_choices_are_scored_as_transformers_scores_them(
    demo: Server, expected: list[list[tuple[float, bool]]], options: dict[str, Any]
) -> None:
    found = evaluate(demo, MULTIPLE_CHOICE, QUESTIONS, **options)

    for sample, scores in zip(found["samples"], expected, strict=True):
        assert [total for total, _ in sample["filtered_resps"]] == pytest.approx(
            [total for total, _ in scores], abs=1e-3
        )
        assert [is_greedy for _, is_greedy in sample["filtered_resps"]] == [is_greedy for _, is_greedy in scores]
    # the choices themselves decide, not their lengths
    best = [max(range(len(scores)), key=lambda index: scores[index][0]) for scores in expected]
    right = sum(one["label"] == index for one, index in zip(QUESTIONS, best, strict=True))
    assert found["results"]["acc,none"] == right / len(QUESTIONS)
    assert 0 < right < len(QUESTIONS)
    assert any(is_greedy for scores in expected for _, is_greedy in scores)


def cut(text: str) -> str:
    """Up to the first stop string."""
    return min((text.partition(stop)[0] for stop in STOPS), key=len)


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"num_concurrent": 3}], ids=["one by one", "in batches", "at once"]
)
def test_answers_end_at_any_of_six_stop_strings(demo: Server, options: dict[str, Any]) -> None:
    whole = [
        demo.complete(prompt=prompt, max_tokens=ANSWER_TOKENS, temperature=0)["choices"][0]["text"]
        for prompt in PROMPTS
    ]
    docs = [{"text": prompt, "answer": cut(text)} for prompt, text in zip(PROMPTS, whole, strict=True)]
    found = evaluate(demo, GENERATION, docs, **options)

    assert [sample["filtered_resps"] for sample in found["samples"]] == [[doc["answer"]] for doc in docs]
    assert found["results"]["exact_match,none"] == 1
    assert [cut(text) for text in whole] != whole


def test_chats_are_answered(demo: Server) -> None:
    question = "What does textwrap.dedent do?"
    docs = [{"text": question, "answer": "whitespace"}]
    found = evaluate(
        demo, {**GENERATION, "generation_kwargs": {"until": ["\n\nThis"]}}, docs, kind="local-chat-completions"
    )
    ((answer,),) = [sample["filtered_resps"] for sample in found["samples"]]

    assert answer.endswith("from every line in `text`.")


def test_the_perplexity_of_a_text_is_transformers(demo: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    text = "def dirname(path):\n    return os.path.split(path)[0]\n"
    found = evaluate(demo, PERPLEXITY, [{"text": text}])
    # the harness puts the end token before a text that follows nothing
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ((total, _),) = reference_scores([([start], tokenizer(text).input_ids)])

    assert found["samples"][0]["filtered_resps"] == pytest.approx([total], abs=1e-3)
