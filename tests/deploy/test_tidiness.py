"""Every YAML file and every shell script that operators touch, as their linters see them."""

import pytest

from tests.deploy.conftest import ROOT, Run

RULES = (
    "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: {max-spaces-inside: 0}, "
    "truthy: {check-keys: false}}}"
)
YAML = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("docker", "deploy")
    for ending in ("*.yaml", "*.yml")
    for path in (ROOT / folder).rglob(ending)
)
SCRIPTS = [".ci/run", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("d*/**/*.sh"))]


@pytest.mark.parametrize("path", YAML)
def test_a_yaml_file_is_tidy(run: Run, path: str) -> None:
    run("yamllint", "--strict", "--config-data", RULES, path)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_shell_script_has_no_finding(run: Run, path: str) -> None:
    run("shellcheck", path)
