from pathlib import Path

from benchmarks.llama_cpp import build, built_server


def test_a_server_that_is_built_is_left_alone(tmp_path: Path) -> None:
    built_server(tmp_path).write_text("built")

    assert build(tmp_path, jobs=1).read_text() == "built"
