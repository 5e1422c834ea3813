"""The wheel, installed into an empty folder and used outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.live_server import clean_environment, serving

ROOT = Path(__file__).parent.parent


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True, timeout=100)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def test_the_wheel_holds_both_packages_whole_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        file.relative_to(ROOT).as_posix()
        for package in ("medusa_core", "server")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    assert packed == there


def test_the_wheel_carries_the_demo_model_with_its_heads(wheel: Path) -> None:
    files = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    demo = {name: size for name, size in files.items() if name.startswith("medusa_core/demo/checkpoint/")}
    names = {Path(name).name for name in demo}

    assert {"config.json", "model.safetensors", "tokenizer.json", "medusa_lm_head.safetensors"} <= names
    assert sum(demo.values()) < 20e6


def test_the_installed_wheel_serves_its_demo_model_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = clean_environment(PYTHONPATH=str(installed))
    medusa = [sys.executable, str(installed / "bin" / "medusa")]
    origin = subprocess.run(
        [sys.executable, "-c", "import medusa_core, server; print(medusa_core.__file__, server.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(file).is_relative_to(installed) for file in origin.stdout.split())
    version = subprocess.run([*medusa, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (version.returncode, version.stdout) == (0, "medusa 0.1.0\n")

    with serving([*medusa, "serve"], tmp_path, environment) as address:
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()

    assert answer["choices"][0]["message"]["content"] != ""
    assert answer["usage"]["completion_tokens"] <= 16
