"""The block for OpenAI's Node client in docs/frontends.md, run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from tests.clients.conftest import NODE_MODULES, ROOT, Server

ADDRESS = "http://127.0.0.1:8000"


def test_the_block_for_node_prints_the_answer(demo: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "frontends.md").read_text(encoding="utf-8")
    (block,) = (one for one in re.findall(r"^```javascript\n(.*?)^```", page, re.M | re.S) if '"openai"' in one)
    # modules are looked for beside the file that imports them
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    program = tmp_path / "block.mjs"
    program.write_text(block.replace(ADDRESS, demo.url), encoding="utf-8")

    node = Path(sys.executable).with_name("node")
    ended = subprocess.run([str(node), program.name], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 0, ended.stderr
    assert "json.dumps" in ended.stdout
