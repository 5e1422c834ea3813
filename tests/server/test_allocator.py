import platform
import subprocess
import sys
from pathlib import Path

import pytest

from server.allocator import MOST_ARENAS

CODE = """
import ctypes, sys, threading
import server.allocator
if sys.argv[2] == "shared":
    server.allocator.share_arenas()
barrier = threading.Barrier(8)
threads = [threading.Thread(target=lambda: (barrier.wait(), bytearray(100_000))) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_threads_share_few_arenas(tmp_path: Path) -> None:
    found = {}
    for how in ("shared", "as ever"):
        subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "arenas"), how], check=True)
        found[how] = (tmp_path / "arenas").read_text().count("<heap nr=")

    assert found["shared"] <= MOST_ARENAS < found["as ever"]
