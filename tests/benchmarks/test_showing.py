import json
from pathlib import Path

import pytest

from benchmarks.through_http.figures import PLAIN, Found, Limits, figures_of
from benchmarks.through_http.showing import document_of, print_table, write_document
from tests.benchmarks.cast import streamed

FIGURES = figures_of({PLAIN: {1: [streamed()]}, "other": {1: [streamed(steps=None)]}}, PLAIN, Limits(1e9, 1e8))


def test_the_table_has_a_line_for_each_peer_and_dashes_for_what_nobody_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("held-out prompts", FIGURES)

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "held-out prompts: 1 prompts"
    assert [line.split()[0] for line in lines[3:]] == [PLAIN, "other"]
    assert "2.00" in lines[3] and " - " in lines[4]


def test_the_document_names_machine_and_revision_and_is_whole_in_its_file(tmp_path: Path) -> None:
    document = document_of("peers", [Found("held-out prompts", Limits(1e9, 1e8), FIGURES)], {"nodes": 8})
    write_document(document, tmp_path / "peers.json")

    read = json.loads((tmp_path / "peers.json").read_text())
    assert {"cpu", "torch", "revision"} <= read["machine"].keys()
    assert [one["peer"] for one in read["sets"][0]["figures"]] == [PLAIN, "other"]
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]
