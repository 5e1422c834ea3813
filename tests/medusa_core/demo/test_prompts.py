import random
from itertools import chain

from medusa_core.demo.corpus import Corpus, Document, Entry
from medusa_core.demo.prompts import distillation_prompts, held_out_prompts, invented, prefixes, source_texts

SOURCE = "import os\n\n" + "".join(f"def function_{n}(text):\n    return text\n\n\n" for n in range(40))
CORPUS = Corpus(
    documents=(Document("seen.py", SOURCE, False), Document("unseen.py", SOURCE.replace("text", "word"), True)),
    entries=tuple(
        Entry(f"module_{n}.name_{n}_{part}", "function", f"Answer {n}.", held_out=n % 5 == 0)
        for n in range(60)
        for part in range(2)
    ),
)


def texts(prompts: list[dict[str, object]]) -> list[str]:
    return [str(prompt["messages"] if "messages" in prompt else prompt["text"]) for prompt in prompts]


def test_nothing_held_out_is_distilled() -> None:
    distilled = distillation_prompts(CORPUS, seed=0)
    prompts = [*chain.from_iterable(distilled.values()), *source_texts(CORPUS, seed=0)]
    unseen = [entry.name for entry in CORPUS.entries if entry.held_out]

    assert len(prompts) > 1000
    assert not any(name in text for text in texts(prompts) for name in unseen)
    assert not any("word" in text for text in texts(prompts))


def test_a_prompt_ends_where_the_assistant_speaks() -> None:
    prompts = distillation_prompts(CORPUS, seed=0)

    assert all("text" in prompt for prompt in prompts["beginnings"])
    for prompt in [*prompts["known"], *prompts["invented"]]:
        assert prompt["messages"][-1]["role"] == "user"


def test_invented_names_exist_nowhere() -> None:
    taken = {entry.name for entry in CORPUS.entries}
    made = list(invented(CORPUS.entries, taken, 30, random.Random(0)))

    assert len({entry.name for entry in made}) == 30
    assert not taken & {entry.name for entry in made}


def test_prefixes_begin_with_a_definition_or_the_file_and_end_with_a_line() -> None:
    for text in prefixes([CORPUS.documents[0]], 50, random.Random(0)):
        assert text.startswith(("import os", "def function_"))
        assert text.endswith("\n")


def test_held_out_prompts_are_held_out_and_always_the_same() -> None:
    prompts = held_out_prompts(CORPUS)
    unseen = [entry.name for entry in CORPUS.entries if entry.held_out]
    questions = [prompt["messages"][0]["content"] for prompt in prompts if "messages" in prompt]

    assert prompts == held_out_prompts(CORPUS)
    assert len(questions) == 12  # one name per module
    assert all(any(f"What does {name} do?" == question for name in unseen) for question in questions)
    assert all("word" in prompt["text"] for prompt in prompts if "text" in prompt)
    assert sum("text" in prompt for prompt in prompts) == 20
