import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.answer_file import AnswerFile

ROOT = Path(__file__).parents[3]
PLAN = {"model": "demo", "seed": 0}


def line(source: int) -> dict[str, Any]:
    return {"text": "Grüße", "source": source, "digest": f"d{source}"}


def begun(folder: Path, *sources: int) -> Path:
    path = folder / "out.jsonl"
    with AnswerFile.open(path, PLAN) as file:
        file.append([line(source) for source in sources])
    return path


def test_what_was_appended_is_known_to_the_next_run(tmp_path: Path) -> None:
    path = begun(tmp_path, 3, 1)

    with AnswerFile.open(path, PLAN) as file:
        assert file.answered == {3: "d3", 1: "d1"}
        file.append([line(2)])
    assert [json.loads(text)["source"] for text in path.read_text(encoding="utf-8").splitlines()] == [3, 1, 2]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    path = begun(tmp_path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])

    with AnswerFile.open(path, PLAN) as file:
        assert file.answered == {1: "d1"}
        file.append([line(2)])
    assert path.read_bytes() == whole


def test_another_plan_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = begun(tmp_path, 1)

    with pytest.raises(ConfigurationError, match=r"begun with seed 0 \(now 1\), turns None \(now 'all'\); repeat"):
        with AnswerFile.open(path, {**PLAN, "seed": 1, "turns": "all"}):
            pass
    with AnswerFile.open(path, PLAN) as file:
        assert file.answered == {1: "d1"}


def test_a_file_without_answers_may_be_begun_with_another_plan(tmp_path: Path) -> None:
    path = begun(tmp_path)

    with AnswerFile.open(path, {**PLAN, "seed": 1}) as file:
        file.append([line(1)])
    with AnswerFile.open(path, {**PLAN, "seed": 1}) as file:
        assert file.answered == {1: "d1"}


@pytest.mark.parametrize("content", ["mine", '{"text": "mine"}\n', '{"text": "mine"}'])
@pytest.mark.parametrize("has_plan", [False, True])
def test_a_file_of_another_kind_is_left_as_it_is(tmp_path: Path, content: str, has_plan: bool) -> None:
    path = begun(tmp_path, 1)
    path.write_text("[]\n" + content)
    if not has_plan:
        path.with_name("out.jsonl.plan.json").unlink()

    with pytest.raises(ConfigurationError, match=r"not written by distill.*name another output"):
        with AnswerFile.open(path, PLAN):
            pass
    assert path.read_text() == "[]\n" + content


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    path = begun(tmp_path, 1)

    with AnswerFile.open(path, PLAN), pytest.raises(ConfigurationError, match="another run is writing"):
        with AnswerFile.open(path, PLAN):
            pass


def test_answers_are_not_written_under_the_name_of_a_packed_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"leave \.gz out"), AnswerFile.open(tmp_path / "out.jsonl.gz", PLAN):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file_for_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a file"):
        with AnswerFile.open(tmp_path, PLAN):
            pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write .*nowhere.*No such file or directory"):
        with AnswerFile.open(tmp_path / "nowhere" / "out.jsonl", PLAN):
            pass


def test_a_disk_that_is_full_leaves_whole_lines_and_a_clear_text(tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk; the process of the tests must not have it.
    path = begun(tmp_path, 1)
    whole = path.read_bytes()
    code = (
        "import resource; from pathlib import Path\n"
        "from medusa_core.training.answer_file import AnswerFile\n"
        "from medusa_core.errors import ConfigurationError\n"
        f"with AnswerFile.open(Path({str(path)!r}), {PLAN!r}) as file:\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 9}, {len(whole) + 9}))\n"
        "    try:\n"
        f"        file.append([{line(2)!r}])\n"
        "    except ConfigurationError as error:\n"
        "        print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "File too large; the answers that are there are whole, and the same command goes on" in shown
    assert path.read_bytes() == whole
