import json
from pathlib import Path

from benchmarks.through_http.running import COPY_HEAVY, stop_tokens


def test_every_file_may_name_tokens_that_end_an_answer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert stop_tokens(tmp_path) == {2}

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert stop_tokens(tmp_path) == {0, 2}


def test_the_copy_heavy_prompts_are_of_both_kinds_the_most_copied_first() -> None:
    assert COPY_HEAVY.file is not None
    entries = [json.loads(line) for line in COPY_HEAVY.file.read_text(encoding="utf-8").splitlines()]
    shares = [entry["copied"] for entry in entries]

    assert shares == sorted(shares, reverse=True)
    assert shares[-1] >= 0.45
    assert min(sum(kind in entry for entry in entries) for kind in ("text", "messages")) >= 12
