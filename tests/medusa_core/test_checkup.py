from pathlib import Path

from transformers import LlamaConfig

from medusa_core.checkup import check_machine, check_model


def test_the_machine_has_a_processor_and_says_what_it_makes_of_cuda_and_a_compiler() -> None:
    names = [finding.name for finding in check_machine()]

    assert names[0] == "processor" and names[-1] == "C compiler"
    assert any(name.lower().startswith("cuda") for name in names)


def test_the_demo_model_has_heads_that_fit() -> None:
    model, heads = check_model("demo", None)

    assert model.is_good and heads.is_good
    assert "fit and are calibrated" in heads.text


def test_heads_of_another_model_are_bad(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    _, heads = check_model(str(tmp_path), "demo")

    assert heads.is_good is False
    assert "the model has 32" in heads.text


def test_a_model_without_heads_works_and_one_that_is_not_there_does_not(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)

    assert [finding.is_good for finding in check_model(str(tmp_path), None)] == [True, None]
    assert [finding.is_good for finding in check_model(str(tmp_path), "/nowhere")] == [True, False]
    assert [finding.is_good for finding in check_model("/nowhere", None)] == [False]


def test_broken_heads_in_the_models_folder_are_not_taken_for_none(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "medusa_lm_head.safetensors").write_bytes(b"half a download")

    _, heads = check_model(str(tmp_path), None)

    assert heads.is_good is False
    assert "medusa_lm_head.safetensors" in heads.text
