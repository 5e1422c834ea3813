from pathlib import Path

from benchmarks.copying import ScriptedEngine, Task
from benchmarks.prompts.pick_copying import copied
from medusa_core.config import EngineConfig
from tests.medusa_core.evaluation.cast import saved_model

TASK = Task("edits", (5, 6, 7, 8, 9, 10, 11, 12), (5, 6, 7, 8, 9, 10, 11, 12, 40, 41))


def test_the_given_answer_is_written_in_fewer_steps_where_the_prompt_is_looked_up(tmp_path: Path) -> None:
    folder = str(saved_model(tmp_path))
    heads, merged = (
        ScriptedEngine.load(
            EngineConfig(folder, tree_nodes=8, num_threads=1, self_test=False, prompt_lookup=merges, recycling=merges)
        )
        for merges in (False, True)
    )

    plain, alone, both = heads.write(TASK, 1)[1], heads.write(TASK, 8)[1], merged.write(TASK, 8)[1]

    assert plain == len(TASK.answer) - 1
    assert both < alone <= plain


def test_the_copied_share_counts_different_spans_only() -> None:
    prompt = tuple(range(40))

    assert copied(prompt, list(range(30))) == 1.0
    assert copied(prompt, [*range(30), *range(100, 130)]) < 0.5
    assert copied(prompt, [1, 2, 3, 4] * 20) == 0.0, "an answer that repeats itself has hardly any spans"
