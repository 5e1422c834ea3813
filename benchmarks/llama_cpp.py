"""Build llama.cpp's server from the sources that its Python package carries: a peer of benchmarks/peers.py.

Everything happens in one folder that git ignores; a server that is there already is left alone. Needs a C++ compiler,
and cmake on the path or from `pip install cmake`. On one core it takes about a quarter of an hour.

Usage: python benchmarks/llama_cpp.py [--work .work/peers] [--jobs 2]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from medusa_core.errors import ConfigurationError

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
PIP_DOWNLOAD = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary")
WORK = Path(__file__).parent.parent / ".work" / "peers"
# As its makers build it, for this very processor; nothing that reaches the network, no pages, no tests.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


def built_server(work: Path) -> Path:
    """Where the server stands once it is built."""
    return work / "llama-server"


def sources(work: Path) -> Path:
    """llama.cpp's sources, downloaded and unpacked unless they are there."""
    unpacked = work / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    if not unpacked.exists():
        archives = work / "archives"
        run([*PIP_DOWNLOAD, PACKAGE, "--dest", str(archives), f"{PACKAGE}=={VERSION}"])
        partial = work / "unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archives / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(partial, filter="data")
        (partial / unpacked.name).rename(unpacked)
        partial.rmdir()
    return unpacked / "vendor" / "llama.cpp"


def build(work: Path, jobs: int) -> Path:
    """Build the server unless it stands there, and say where."""
    target = built_server(work)
    if target.exists():
        return target
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise ConfigurationError("llama.cpp is built with cmake, which is not there; pip install cmake")
    work.mkdir(parents=True, exist_ok=True)
    folder = work / "build"
    run([cmake, "-S", str(sources(work)), "-B", str(folder), *(f"-D{key}={value}" for key, value in OPTIONS.items())])
    run([cmake, "--build", str(folder), "--target", "llama-server", "--parallel", str(jobs)])
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(folder / "bin" / "llama-server", partial)
    partial.rename(target)
    return target


def version(server: Path) -> str:
    """What the server says of itself, and the package that its sources came from."""
    told = subprocess.run([str(server), "--version"], capture_output=True, text=True, check=True)
    first = next(line for line in (told.stdout + told.stderr).splitlines() if line.startswith("version"))
    return f"{first.removeprefix('version:').strip()}, {PACKAGE} {VERSION}"


def run(command: list[str]) -> None:
    """A command whose output is shown, and whose failure ends the program."""
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    print(build(options.work, options.jobs))


if __name__ == "__main__":
    main()
