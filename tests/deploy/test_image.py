"""docker/Dockerfile: what it says, and the health check that it names; `make image-test` builds it."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.settings import ENV_PREFIX, Settings
from tests.deploy.conftest import ROOT, Run
from tests.live_server import free_port
from tests.server.running import running

FILE = ROOT / "docker" / "Dockerfile"


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, in order, each as its name and its words."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    found: list[list[tuple[str, str]]] = [[]]
    for name, _, words in (line.partition(" ") for line in joined if line):
        if name == "FROM":
            found.append([])
        found[-1].append((name, words.strip()))
    return found


def words_of(name: str) -> list[str]:
    """The words of an instruction of the last stage, once for each time it is given."""
    return [words for instruction, words in stages()[-1] if instruction == name]


def variables() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", words_of("ENV")[0]))


def test_the_linter_finds_nothing(run: Run) -> None:
    run("hadolint", "docker/Dockerfile")


def test_the_server_is_the_first_process_and_nobody_in_particular() -> None:
    assert words_of("USER") == ["10001:10001"]
    assert [json.loads(words) for words in words_of("ENTRYPOINT")] == [["medusa"]]
    assert [json.loads(words) for words in words_of("CMD")] == [["serve"]]
    assert words_of("STOPSIGNAL") == ["SIGTERM"]


def test_the_last_stage_has_the_environment_and_nothing_else_of_the_build() -> None:
    _, build, last = stages()
    base = next(words for name, words in build if name == "FROM")

    assert words_of("COPY") == ["--from=build /opt/medusa /opt/medusa"]
    assert base == f"{last[0][1]} AS build", "an environment is of use to the Python that made it alone"
    assert not [words for name, words in last if name == "ARG" and words.startswith("PIP")]


def test_what_is_written_goes_to_the_volume_or_to_temporary_files() -> None:
    (volume,) = words_of("VOLUME")
    homes = {name: value for name, value in variables().items() if "HOME" in name or "CACHE" in name}

    assert len(homes) >= 5
    assert {name: value for name, value in homes.items() if not f"{value}/".startswith(f"{volume}/")} == {}
    assert variables()["TMPDIR"] == "/tmp"
    # a new volume takes over whose the folder is that it is laid over
    assert any(f"install -d -o medusa -g medusa {volume}" in " ".join(words.split()) for words in words_of("RUN"))


def test_the_server_can_be_reached_from_outside_of_the_container() -> None:
    assert variables()["MEDUSA_HOST"] == "0.0.0.0"


def test_the_servers_variables_are_settings_and_its_port_is_the_exposed_one() -> None:
    chosen = {name: value for name, value in variables().items() if name.startswith(ENV_PREFIX)}

    assert {name.removeprefix(ENV_PREFIX).lower() for name in chosen} <= set(Settings.model_fields)
    assert words_of("EXPOSE") == [chosen["MEDUSA_PORT"]]


def test_its_label_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', words_of("LABEL")[0]))

    assert (labels["version"], labels["licenses"]) == (project["version"], project["license"])


def test_what_it_copies_is_there_and_passes_the_ignored_files() -> None:
    copied = {word for name, words in stages()[1] if name == "COPY" for word in words.split()[:-1]}
    passing = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert copied == passing
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def unready() -> Iterator[int]:
    """The port of a server that lives and cannot answer requests yet."""

    class Loading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path == "/ready" else 200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Loading) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def health_check(port: int) -> int:
    """The status of the very command that the image names."""
    command = json.loads(words_of("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert command[0] == "python"
    # a proxy of the host must not be asked for what is in the container
    environment = {**os.environ, "MEDUSA_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode


def test_the_health_check_holds_for_a_server_that_answers(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert health_check(int(server.url.rpartition(":")[2])) == 0


def test_the_health_check_fails_while_a_model_is_loaded_and_without_a_server(unready: int) -> None:
    assert health_check(unready) == 1
    assert health_check(free_port()) == 1
