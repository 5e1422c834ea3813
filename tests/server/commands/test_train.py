from tests.server.commands.refusals import refusal


def test_a_data_file_that_is_not_there_is_named() -> None:
    assert "/nowhere.jsonl" in refusal("train", "--data", "/nowhere.jsonl", "--out", "x")


def test_an_unknown_recipe_is_named() -> None:
    assert "--recipe medusa3" in refusal("train", "--data", "x", "--out", "x", "--recipe", "medusa3")
