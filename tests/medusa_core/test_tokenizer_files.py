import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medusa_core.errors import CheckpointError, ModelNotFound
from medusa_core.text import TextCodec
from medusa_core.tokenizer_files import load_tokenizer
from tests.tiny_tokenizers import save_byte_level, save_sentencepiece


def nothing(folder: Path) -> None:
    pass


def broken_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs")


def unknown_sentencepiece(folder: Path) -> None:
    save_sentencepiece(folder, tokenizer_class="XLNetTokenizer")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nothing, "neither tokenizer.json nor tokenizer.model"),
        (broken_json, "tokenizer.json.*JSON"),
        (unknown_sentencepiece, "XLNetTokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path)

    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path, "tiny")


@pytest.mark.parametrize("name", ["/no/such/folder", "../nowhere", "two words"])
def test_a_name_that_is_no_folder_and_no_hub_id_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound, match="hub id"):
        TextCodec.load(name)


def test_a_model_that_the_hub_does_not_give_is_named_with_what_the_hub_says(tmp_path: Path) -> None:
    program = "from medusa_core.text import TextCodec; TextCodec.load('someone/nothing')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    said = ran.stderr.splitlines()[-1]
    assert "ModelNotFound: the model 'someone/nothing' is no folder here, and the hub does not have it" in said
    assert "check the name, or give a folder or a hub id" in said


@pytest.mark.parametrize(("name", "revision"), [("someone/some-model@older", "older"), ("someone/some-model", "main")])
def test_a_hub_id_is_read_from_the_cache_at_its_revision_without_a_network(
    tmp_path: Path, name: str, revision: str
) -> None:
    repository = tmp_path / "hub" / "models--someone--some-model"
    save_byte_level(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text("0123abc")
    program = f"from medusa_core.text import TextCodec; assert TextCodec.load({name!r}).encode('Hello')"

    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_code_that_a_checkpoint_brings_is_not_run(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")

    load_tokenizer(tmp_path, "tiny")

    assert not (tmp_path / "ran").exists()
