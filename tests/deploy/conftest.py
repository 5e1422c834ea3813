"""The programs that look at docker/ and deploy/, and where these stand."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs a program with arguments in the repository's root; the test fails with what it said when its status is not 0.
Run = Callable[..., str]


@pytest.fixture(scope="session")
def run() -> Run:
    def run(program: str, *arguments: str | Path, stdin: str | None = None) -> str:
        found = shutil.which(program, path=f"{ROOT / '.venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin")
        assert found is not None, f"{program} is missing; `make tools` and `make setup` install what these tests need"
        done = subprocess.run(
            [found, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{program} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run
