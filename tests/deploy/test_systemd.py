"""deploy/systemd/medusa.service, as systemd reads it and as the server needs it."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from server.settings import ENV_PREFIX, Settings
from tests.deploy.conftest import ROOT, Run
from tests.deploy.test_image import variables, words_of

UNIT = ROOT / "deploy" / "systemd" / "medusa.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to read a unit")


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@needs_systemd
def test_systemd_understands_every_line(run: Run, tmp_path: Path) -> None:
    # a program that exists, since this one is installed on the operator's host alone
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/medusa/bin/medusa", sys.executable))

    assert run("systemd-analyze", "verify", unit).strip() == ""


@needs_systemd
def test_systemd_finds_little_that_it_may_do(run: Run) -> None:
    # from 0 to 100; a unit without any of its lines comes to 96
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", UNIT)


def test_it_starts_the_server_and_reads_settings() -> None:
    chosen = dict(value.split("=", 1) for value in values("Environment"))
    names = {name.removeprefix(ENV_PREFIX).lower() for name in chosen if name.startswith(ENV_PREFIX)}

    assert values("ExecStart") == ["/opt/medusa/bin/medusa serve"]
    assert names <= set(Settings.model_fields)
    assert values("EnvironmentFile") == ["-/etc/medusa/medusa.env"]
    assert values("CacheDirectory") == ["medusa"]


def test_all_that_the_image_keeps_the_unit_keeps_where_it_may_write() -> None:
    chosen = dict(value.split("=", 1) for value in values("Environment"))
    (volume,) = words_of("VOLUME")
    kept = {name: place.removeprefix(volume) for name, place in variables().items() if place.startswith(volume)}

    assert len(kept) >= 5
    assert {name: chosen.get(name) for name in kept} == {name: f"%C/medusa{place}" for name, place in kept.items()}


def test_the_end_of_the_server_is_waited_for_and_is_no_failure() -> None:
    (stop,) = values("TimeoutStopSec")

    assert int(stop) > Settings.model_fields["shutdown_timeout_s"].default
    # the worker must not hear of it before the server does
    assert (values("KillMode"), values("KillSignal")) == (["mixed"], ["SIGTERM"])
    assert values("SuccessExitStatus") == ["143 SIGTERM"]


def test_a_failure_is_tried_again_and_not_for_ever() -> None:
    assert values("Restart") == ["on-failure"]
    assert int(values("RestartSec")[0]) * int(values("StartLimitBurst")[0]) < int(values("StartLimitIntervalSec")[0])


def test_kernels_may_be_written_and_run_and_gpus_reached() -> None:
    text = UNIT.read_text()

    assert not re.search(r"^(MemoryDenyWriteExecute|PrivateDevices|NoExecPaths)=", text, re.MULTILINE)
    assert values("DevicePolicy") == ["closed"]
    assert {"char-nvidia rw", "char-nvidia-uvm rw"} <= set(values("DeviceAllow"))
    # systemd looks these names up when it starts the unit, and passes over those of modules that come later
    assert values("Wants")[1] == "modprobe@nvidia_uvm.service"
    assert set(values("Wants")) == set(values("After"))
