"""Runs a file of node:test tests once and tells of each claim in it whether it holds."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NODE_FOLDER = Path(__file__).parent / "node"
RUN_TIMEOUT_S = 170
CLAIM = re.compile(r'^test\("(.*)",', re.MULTILINE)
RESULT = re.compile(r"^(not ok|ok) \d+ - (.*?)( # .*)?$\n?((?:^  .*$\n?)*)", re.MULTILINE)


def claims(file: str) -> list[str]:
    """Names of the tests of a file, as it is read before anything runs."""
    return CLAIM.findall((NODE_FOLDER / file).read_text(encoding="utf-8"))


def run(file: str, environment: Mapping[str, str]) -> dict[str, str | None]:
    """Each claim with None when it held, or with what node says of it."""
    # the one of this environment
    node = Path(sys.executable).with_name("node")
    ended = subprocess.run(
        [str(node), "--test", "--test-reporter=tap", str(NODE_FOLDER / file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    results = {name: None if word == "ok" else details for word, name, _, details in RESULT.findall(ended.stdout)}
    assert results.keys() == set(claims(file)), ended.stdout + ended.stderr
    return results
