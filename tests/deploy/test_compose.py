"""docker/compose.yaml, what is laid over it, and what .env may choose."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import ENV_PREFIX, Settings
from tests.deploy.conftest import ROOT, Run
from tests.deploy.test_image import FILE, stages

FOLDER = ROOT / "docker"
FILES = ("compose.yaml", "compose.gpu.yaml")
TEXTS = {name: (FOLDER / name).read_text() for name in FILES}
EXAMPLE = (FOLDER / ".env.example").read_text()
# Known by what they name: ${NAME:-default}, ${NAME:+value}.
VARIABLE = re.compile(r"\$\{(\w+)(?::([-+])([^}]*))?\}")
# In a container the address and the port are the image's, and there is no file to name.
FIXED = {"host", "port", "config"}


def resolved(name: str, chosen: dict[str, str] | None = None) -> dict[str, Any]:
    """A compose file as it is read with these variables."""
    values = chosen if chosen is not None else {}

    def value(match: re.Match[str]) -> str:
        given, kind, other = values.get(match[1], ""), match[2], match[3]
        return (other if given else "") if kind == "+" else given or (other or "")

    document: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, TEXTS[name]))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = resolved("compose.yaml")["services"]
    return found


def in_example() -> dict[str, str]:
    """The names that .env.example shows, with the values that hold without them."""
    return dict(re.findall(r"^# ([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE, re.MULTILINE))


def seconds(duration: str) -> int:
    assert re.fullmatch(r"\d+s", duration), duration
    return int(duration[:-1])


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_the_specification_knows(run: Run, name: str) -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", f"docker/{name}")


def test_every_option_of_the_server_can_be_given_and_nothing_else() -> None:
    given = {name for name in services()["medusa"]["environment"] if name.startswith(ENV_PREFIX)}
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields if name not in FIXED}

    assert sorted(known - given) == [], "settings that docker/compose.yaml does not pass on"
    assert sorted(given - known) == []
    assert set(services()["medusa"]["environment"].values()) == {None}, "left to the server where nobody chose"


def test_the_example_shows_real_settings_with_the_values_that_hold_without_them() -> None:
    shown = {name: value for name, value in in_example().items() if name.startswith(ENV_PREFIX)}

    for name, value in shown.items():
        field = Settings.model_fields[name.removeprefix(ENV_PREFIX).lower()]
        # left out, the context is the model's, and 8192 at most
        expected = "8192" if name == "MEDUSA_MAX_CONTEXT" else "" if field.default in (None, ()) else str(field.default)
        assert value == expected, name
    assert "MEDUSA_API_KEY" in shown


def test_the_example_shows_every_variable_that_the_files_read_and_its_default() -> None:
    read = {}
    for text in TEXTS.values():
        for name, kind, default in VARIABLE.findall(text):
            if not name.startswith(ENV_PREFIX):
                # compose.gpu.yaml, read later, may have another; the example shows the first
                read.setdefault(name, "" if kind == "+" else default)
    shown = {name: value for name, value in in_example().items() if not name.startswith(ENV_PREFIX)}

    assert {**read, "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"} == shown


@pytest.mark.parametrize("name", services())
def test_a_service_can_do_little_and_take_only_so_much(name: str) -> None:
    service = services()[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "user"} & set(service)
    assert service["mem_limit"] and service["pids_limit"] and service["restart"] == "unless-stopped"
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "an image without a version is another one tomorrow"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_temporary_files_of_the_server_may_be_run_and_the_cache_outlives_it() -> None:
    server = services()["medusa"]
    (temporary,) = server["tmpfs"]

    assert temporary.startswith("/tmp:") and "exec" in temporary.partition(":")[2].split(",")
    assert "cache:/cache" in server["volumes"]
    assert any(volume.endswith(":/models:ro") for volume in server["volumes"])


def test_the_server_has_longer_to_end_than_its_answers_have() -> None:
    assert seconds(services()["medusa"]["stop_grace_period"]) > Settings.model_fields["shutdown_timeout_s"].default


def test_what_is_mounted_is_there_or_is_a_volume() -> None:
    document = resolved("compose.yaml")
    sources = [volume.split(":")[0] for service in services().values() for volume in service["volumes"]]
    paths = [FOLDER / source for source in sources if source.startswith(".") and source != "./models"]

    assert len(paths) >= 4
    assert [path for path in paths if not path.exists()] == []
    assert {source for source in sources if not source.startswith(".")} == set(document["volumes"])
    assert {name for service in services().values() for name in service["networks"]} == set(document["networks"])


def test_prometheus_finds_the_server_and_grafana_finds_prometheus() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target for job in scraped["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    }
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    networks = {name: set(service["networks"]) for name, service in services().items()}

    assert "medusa:8000" in targets and networks["medusa"] & networks["prometheus"]
    assert sources["datasources"][0]["url"] == "http://prometheus:9090" and networks["prometheus"] & networks["grafana"]


def test_prometheus_reads_what_is_mounted_and_writes_to_its_volume() -> None:
    service = services()["prometheus"]
    mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
    options = dict(word.removeprefix("--").split("=", 1) for word in service["command"])
    places = {inside: outside for outside, inside in mounts.items()}
    read = Path(options["config.file"])

    assert (FOLDER / places[str(read.parent)] / read.name).is_file()
    assert places[options["storage.tsdb.path"]] == "prometheus"
    assert "./grafana.ini:/etc/grafana/grafana.ini:ro" in services()["grafana"]["volumes"], "where the image looks"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_a_service_is_asked_how_it_is_on_the_port_that_it_opens(name: str) -> None:
    service = services()[name]
    (port,) = (port.rpartition(":")[2] for port in service["ports"])

    assert service["healthcheck"]["test"][-1].startswith(f"http://127.0.0.1:{port}/")


def test_the_image_is_built_from_its_dockerfile_with_arguments_that_it_takes() -> None:
    build = services()["medusa"]["build"]
    context = FOLDER / build["context"]
    taken = {words.partition("=")[0] for stage in stages() for instruction, words in stage if instruction == "ARG"}

    assert (context / build["dockerfile"]).resolve() == FILE and context.resolve() == ROOT
    assert set(build["args"]) <= taken


def test_grafana_shows_its_dashboards_where_they_are_mounted() -> None:
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    folders = {inside: (FOLDER / outside).resolve() for outside, inside in mounts.items() if outside.startswith(".")}
    file = configparser.ConfigParser()
    file.read(FOLDER / "grafana.ini")
    home = Path(file["dashboards"]["default_home_dashboard_path"])
    provider = yaml.safe_load((folders["/etc/grafana/provisioning"] / "dashboards" / "medusa.yaml").read_text())

    assert provider["providers"][0]["options"]["path"] == str(home.parent)
    assert (folders[str(home.parent)] / home.name).is_file()


def test_without_a_password_everybody_looks_and_nobody_logs_in_and_with_one_it_is_the_other_way() -> None:
    file = configparser.ConfigParser()
    file.read(FOLDER / "grafana.ini")
    # Grafana leaves what the file says where a variable is empty
    named = {
        f"GF_{section}_{key}".upper().replace(".", "_"): value
        for section in file
        for key, value in file[section].items()
    }
    open_to_all = services()["grafana"]["environment"]
    closed = resolved("compose.yaml", {"GRAFANA_PASSWORD": "secret"})["services"]["grafana"]["environment"]
    switches = set(open_to_all) - {"GF_SECURITY_ADMIN_PASSWORD"}

    assert {named[name] for name in switches} == {"true"}
    assert not any(open_to_all.values())
    assert {closed[name] for name in switches} == {False}
    assert closed["GF_SECURITY_ADMIN_PASSWORD"] == "secret"


def test_a_gpu_is_asked_for_in_the_second_file_alone() -> None:
    reserved = resolved("compose.gpu.yaml", {"GPU": "1"})["services"]["medusa"]["deploy"]["resources"]["reservations"]

    assert reserved["devices"] == [{"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}]
    assert "deploy" not in services()["medusa"]
    assert set(resolved("compose.gpu.yaml")["services"]) <= set(services())
