from tests.server.commands.refusals import refusal


def test_a_prompt_file_that_is_not_there_is_named() -> None:
    assert "/nowhere.jsonl" in refusal("distill", "--prompts", "/nowhere.jsonl", "--out", "x")
