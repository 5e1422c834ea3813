"""Build the CPU image where no container engine is, run it as an engine would, and look at what it does.

Needs root, Debian's buildah, crun and debootstrap, and package registries: `make image-test` installs the former. The
base image is made from Debian's own Python in place of the one that the Dockerfile names. What pip is told on this
machine (indexes, folders, certificates) is told to the build as well, as a secret and as folders mounted read-only.

    .venv/bin/python docker/image_test.py [--work .work/image] [--built, for the image of the last time]
"""

import argparse
import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
IMAGE, BASE = "localhost/medusa:cpu", "localhost/medusa-python:3.11"
PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
QUESTION = "What does textwrap.dedent do?"
UID = 10001
# Room for a machine that is busy with other things.
READY_WITHIN_S, DRAIN_WITHIN_S = 300, 120


def run(*words: str | Path, **options: Any) -> str:
    """What a program prints; its complaints go to the terminal."""
    done = subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True, **options)
    return str(done.stdout).strip()


def say(what: str, *details: object) -> None:
    """One line for a check that held."""
    print("ok", what, *details, flush=True)


@dataclass(frozen=True)
class Buildah:
    """Buildah with images and layers in a folder of its own."""

    work: Path

    def __call__(self, *words: str | Path, **options: Any) -> str:
        """What a command of it prints."""
        storage = ["--storage-driver", "overlay", "--root", self.work / "storage", "--runroot", self.work / "run"]
        return run("buildah", *storage, *words, **options)

    def has(self, image: str) -> bool:
        """Whether an image is there."""
        return image in {name for found in json.loads(self("images", "--json")) for name in found.get("names") or ()}

    def release(self) -> None:
        """Take off what it mounts on its folder, so that the folder can be removed."""
        subprocess.run(["umount", str(self.work / "storage" / "overlay")], capture_output=True, check=False)


def make_base(buildah: Buildah) -> None:
    """An image with Debian's Python, of the version that the Dockerfile names."""
    if buildah.has(BASE):
        return
    folder = buildah.work / "rootfs"
    shutil.rmtree(folder, ignore_errors=True)
    with (buildah.work / "debootstrap.log").open("w") as log:
        words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
        subprocess.run(words, check=True, stdout=log, stderr=log)
    container = buildah("from", "scratch")
    buildah("add", container, folder, "/")
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(folder)


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine, by files and by variables; variables go first."""
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    found = [match.groups() for line in lines if (match := re.fullmatch(r"(global|:env:)\.([\w-]+)=(.*)", line))]
    return {name: ast.literal_eval(value) for _, name, value in sorted(found, reverse=True)}


def local_places(settings: dict[str, str]) -> set[Path]:
    """Files and folders of this machine that pip's settings name."""
    words = [word for value in settings.values() for word in value.split()]
    # an index names files that lie beside it
    places = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    return {place for place in places | {Path(word) for word in words if word.startswith("/")} if place.exists()}


def build(buildah: Buildah) -> None:
    """The image as its Dockerfile has it, with torch for a CPU where pip finds such a build."""
    settings = pip_settings()
    secret = buildah.work / "pip.conf"
    # it may name passwords, and is there for the build alone
    secret.touch(mode=0o600)
    secret.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
    mounts = [word for place in sorted(local_places(settings)) for word in ("--volume", f"{place}:{place}:ro")]
    options = ["--format", "docker", "--pull-never", "--isolation", "chroot", "--layers", "--tag", IMAGE]
    arguments = ["--build-arg", f"PYTHON_IMAGE={BASE}", "--build-arg", "TORCH_BUILD=+cpu"]
    given = [*options, *arguments, "--secret", f"id=pip.conf,src={secret}", *mounts]
    log = buildah.work / "build.log"
    with log.open("w") as told:
        try:
            buildah("bud", *given, "--file", ROOT / "docker" / "Dockerfile", ROOT, stderr=told)
        except subprocess.CalledProcessError:
            raise SystemExit(f"the image cannot be built; {log} ends with\n{log.read_text()[-2000:]}") from None
        finally:
            secret.unlink()


def check_description(buildah: Buildah) -> dict[str, Any]:
    """What the image says of itself: who runs what, how it is stopped and asked how it is."""
    found = json.loads(buildah("inspect", "--type", "image", IMAGE))
    config: dict[str, Any] = found["Docker"]["config"]
    assert config["User"] == f"{UID}:{UID}", config["User"]
    assert config["Entrypoint"] == ["medusa"] and config["Cmd"] == ["serve"], config
    assert config["StopSignal"] == "SIGTERM", config
    assert set(config["Volumes"]) == {"/cache"} and set(config["ExposedPorts"]) == {"8000/tcp"}, config
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"], config["Healthcheck"]
    told = json.dumps(config)
    assert not [word for value in pip_settings().values() for word in value.split() if "/" in word and word in told]
    say("USER, ENTRYPOINT, CMD, STOPSIGNAL, VOLUME, EXPOSE, HEALTHCHECK; nothing of this machine's pip")
    sizes = [round(layer["size"] / 1e6) for layer in json.loads(found["Manifest"])["layers"]]
    say(f"{sum(sizes)} MB: the base, the compiler and the environment take", *sizes)
    return config


@dataclass(frozen=True)
class Container:
    """The image, running: no capability, a read-only root, a tmpfs, a volume, and the network of this machine."""

    name: str
    work: Path
    process: subprocess.Popen[bytes]
    url: str

    def execute(self, *words: str) -> int:
        """The status of another program in it, run as the same user."""
        log = (self.work / "execute.log").open("ab")
        command = ["crun", "--root", str(self.work / "crun"), "exec", "--user", f"{UID}:{UID}", self.name, *words]
        with log:
            return subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False).returncode

    def stop(self) -> None:
        """What `docker stop` sends."""
        run("crun", "--root", self.work / "crun", "kill", self.name, "TERM")


def bundle(work: Path, root: str, config: dict[str, Any], port: int) -> None:
    """Write what `docker run --read-only --cap-drop ALL --security-opt no-new-privileges` would set up."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    os.chown(cache, UID, UID)
    private = ["nosuid", "nodev"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [*private, "mode=1777", "size=256m"]},
        {"destination": "/cache", "type": "bind", "source": str(cache), "options": ["bind", "rw", *private]},
    ]
    process = {
        "user": {"uid": UID, "gid": UID},
        "args": [*config["Entrypoint"], *config["Cmd"]],
        "env": [*config["Env"], f"MEDUSA_PORT={port}", "MEDUSA_HOST=127.0.0.1", "MEDUSA_LOG_LEVEL=info"],
        "cwd": config["WorkingDir"],
        "noNewPrivileges": True,
        "capabilities": {},
    }
    kinds = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    specification = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": root, "readonly": True},
        "mounts": mounts,
        "linux": {"namespaces": kinds},
    }
    (work / "config.json").write_text(json.dumps(specification, indent=2))


@contextlib.contextmanager
def running(buildah: Buildah, config: dict[str, Any], port: int) -> Iterator[Container]:
    """The image's own command, on a port of the loopback address."""
    work, name = buildah.work, f"medusa-{os.getpid()}"
    files = buildah("from", "--pull-never", IMAGE)
    root = buildah("mount", files)
    assert Path(root, "cache").stat().st_uid == UID, "an engine's new volume would be nobody's to write to"
    bundle(work, root, config, port)
    crun = f"crun --root {work / 'crun'} --cgroup-manager disabled run --bundle {work} {name}"
    # crun looks at this machine's cgroups even when told to leave them alone, and refuses some kinds
    words = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /sys/fs/cgroup && exec {crun}"]
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield Container(name, work, process, f"http://127.0.0.1:{port}")
    finally:
        if process.poll() is None:
            run("crun", "--root", work / "crun", "delete", "--force", name)
            process.wait()
        buildah("umount", files)
        buildah("rm", files)


def wait_until_healthy(container: Container, test: Sequence[str]) -> None:
    """Until the image's own health check, run in the container, says so."""
    began = time.monotonic()
    while container.execute(*test) != 0:
        assert container.process.poll() is None, (container.work / "server.log").read_text()
        assert time.monotonic() < began + READY_WITHIN_S, "the health check did not come to hold"
        time.sleep(0.5)
    say("the health check holds after", round(time.monotonic() - began, 1), "s")


def streamed(container: Container, **options: Any) -> Iterator[str]:
    """The pieces of an answer as they come; ends without an error only where the stream says that it is done."""
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "stream": True, **options}
    with httpx.stream("POST", f"{container.url}/v1/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])
    raise AssertionError("the stream ended before it was done")


def check_answer(container: Container) -> None:
    """A streamed answer is what the checkout's own command says."""
    here = run(Path(sys.executable).with_name("medusa"), "generate", QUESTION, "--max-tokens", "64")
    there = "".join(streamed(container, max_tokens=64)).strip()
    assert there == here, (there, here)
    say("a streamed answer equals the checkout's:", repr(here[:60]))


def check_surroundings(container: Container) -> None:
    """Nothing but the volume and temporary files can be written, and the compiler is of use all the same."""
    for place, status in (("/", 1), ("/opt/medusa", 1), ("/home/medusa", 1), ("/cache", 0), ("/tmp", 0)):
        found = container.execute("python", "-c", f"open({place!r} + '/x', 'w')")
        assert found == status, f"writing to {place} ended with {found}"
    assert container.execute("python", "-c", "import os; raise SystemExit(os.getuid() != 10001)") == 0
    say("runs as", UID, "and writes to /cache and /tmp alone")
    builds = "from medusa_core.fusion.native import build; raise SystemExit(build() is None)"
    assert container.execute("python", "-c", builds) == 0, (container.work / "execute.log").read_text()
    log = (container.work / "server.log").read_text()
    assert "kernels for small models" not in log and "builds no kernels" not in log, log
    metrics = httpx.get(f"{container.url}/metrics").text
    plain = re.search(r"^medusa_plain_step_seconds\S* (\S+)$", metrics, re.MULTILINE)
    say("kernels are compiled", f"(a plain step takes {float(plain[1]) * 1e3:.2f} ms)" if plain is not None else "")


def check_end(container: Container) -> None:
    """SIGTERM lets a running answer end, and then the server ends."""
    pieces = streamed(container, max_tokens=400, ignore_eos=True)
    next(pieces)
    began = time.monotonic()
    container.stop()
    text = "".join(pieces)
    status = container.process.wait(DRAIN_WITHIN_S)
    # uvicorn raises the signal again, which the first process of a container does not feel
    assert status in (0, 143) and text != "", (status, text)
    say("SIGTERM: the stream ended whole, the server with status", status, "after", f"{time.monotonic() - began:.1f} s")


def main() -> None:
    """Build, look at what is built, run it, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "image", help="folder for images and logs")
    parser.add_argument("--port", type=int, default=8123, help="port of the loopback address to serve on")
    parser.add_argument("--built", action="store_true", help="test the image that was built last")
    chosen = parser.parse_args()
    missing = [name for name in ("buildah", "crun", "debootstrap") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        raise SystemExit(f"this needs root, and of Debian's packages {', '.join(missing) or 'nothing more'}")
    chosen.work.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(chosen.work.resolve())
    try:
        if not chosen.built:
            began = time.monotonic()
            make_base(buildah)
            build(buildah)
            say("built in", round(time.monotonic() - began), "s")
        config = check_description(buildah)
        with running(buildah, config, chosen.port) as container:
            wait_until_healthy(container, config["Healthcheck"]["Test"][1:])
            check_answer(container)
            check_surroundings(container)
            check_end(container)
    finally:
        buildah.release()


if __name__ == "__main__":
    main()
