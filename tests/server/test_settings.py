from pathlib import Path
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from server.settings import Settings, load_settings


def test_command_line_goes_before_variable_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "medusa.yaml"
    file.write_text("port: 1\nhost: file\nqueue_size: 3\n")
    monkeypatch.setenv("MEDUSA_PORT", "2")
    monkeypatch.setenv("MEDUSA_HOST", "variable")
    settings = load_settings({"port": "4", "config": str(file), "host": None})

    assert (settings.port, settings.host, settings.queue_size) == (4, "variable", 3)
    assert settings.device == "auto"


@pytest.mark.parametrize(("name", "text"), [("m.toml", "tree_nodes = 16"), ("m.yml", "tree_nodes: 16")])
def test_the_file_may_be_named_by_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("MEDUSA_CONFIG", str(tmp_path / name))

    assert load_settings({}).tree_nodes == 16


def test_auto_leaves_the_tree_to_the_engine_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_HEADS", "")

    assert load_settings({"tree_nodes": "auto"}).tree_nodes is None
    assert load_settings({}).heads is None


@pytest.mark.parametrize("given", ["a,b", ["a", "b"], ["a, b", "a"]])
def test_a_model_may_have_several_names(given: str | list[str]) -> None:
    settings = load_settings({"served_model_name": given})

    assert (settings.served_names, settings.served_name) == (("a", "b"), "a")


def test_a_model_without_a_given_name_goes_by_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    assert load_settings({}).served_names == ("demo",)
    assert load_settings({"model": str(tmp_path / "mine")}).served_names == ("mine",)
    assert load_settings({"model": "owner/name@v1"}).served_names == ("owner/name",)


def test_a_worker_may_be_waited_for_without_end() -> None:
    assert load_settings({"step_timeout_s": "none"}).step_timeout_s is None
    assert load_settings({"step_timeout_s": "7.5"}).step_timeout_s == 7.5


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"port": "80000"}, "--port (MEDUSA_PORT): Input should be less than or equal to 65535, got '80000'"),
        ({"dtype": "float8"}, "--dtype"),
        (
            {"tree_nodes": "many"},
            "--tree-nodes (MEDUSA_TREE_NODES): give a whole number of 1 or more, or auto, got 'many'",
        ),
        ({"tree_nodes": "0"}, "--tree-nodes (MEDUSA_TREE_NODES): Input should be greater than or equal to 1"),
        ({"prefix_cache": "-1"}, "--prefix-cache (MEDUSA_PREFIX_CACHE): Input should be greater than or equal to 0"),
        ({"tree": "tall"}, "--tree (MEDUSA_TREE): Input should be 'dynamic' or 'static'"),
        ({"quantize": "int3"}, "--quantize (MEDUSA_QUANTIZE): Input should be 'none', 'int8', 'int4'"),
        ({"chat_template": "/nowhere.jinja"}, "/nowhere.jinja"),
        ({"config": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"api_key": ""}, "--api-key (MEDUSA_API_KEY): an API key is empty"),
        ({"api_key": "sesame,,sezam"}, "--api-key"),
        ({"cors_origins": "http://localhost:3000/"}, "--cors-origins (MEDUSA_CORS_ORIGINS): 'http://localhost:3000/'"),
        ({"served_model_name": "a,"}, "--served-model-name (MEDUSA_SERVED_MODEL_NAME): a name is empty"),
        ({"request_timeout_s": "0"}, "--request-timeout-s"),
        ({"step_timeout_s": "1"}, "--step-timeout-s (MEDUSA_STEP_TIMEOUT_S): Input should be greater than"),
        ({"threads": "100000000"}, "--threads (MEDUSA_THREADS): Input should be less than or equal to 1024"),
        ({"request_timeout_s": "inf"}, "--request-timeout-s"),
        ({"header_timeout_s": "0"}, "--header-timeout-s"),
        ({"body_timeout_s": "nan"}, "--body-timeout-s"),
        ({"send_timeout_s": "inf"}, "--send-timeout-s"),
        ({"keep_alive_s": "0"}, "--keep-alive-s"),
        ({"max_connections": "0"}, "--max-connections"),
        ({"rate_limit": "0"}, "--rate-limit (MEDUSA_RATE_LIMIT): Input should be greater than or equal to 1"),
        ({"open_docs": "perhaps"}, "--open-docs"),
        ({"cors_origins": "localhost"}, "'localhost' is no origin"),
        ({"cors_origins": "https://A.example"}, "'https://A.example' is no origin"),
        ({"cors_origins": "https://a.example,"}, "'' is no origin"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(chosen: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(chosen)

    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_origins_are_separated_by_commas_or_a_list_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('cors_origins = ["https://a.example", "http://[::1]:8080"]')

    assert load_settings({}).cors_origins == ()
    assert load_settings({"cors_origins": "*"}).cors_origins == ("*",)
    assert load_settings({"cors_origins": "app://obsidian.md, http://localhost:3000"}).cors_origins == (
        "app://obsidian.md",
        "http://localhost:3000",
    )
    assert load_settings({"config": str(tmp_path / "m.toml")}).cors_origins == (
        "https://a.example",
        "http://[::1]:8080",
    )


def test_an_unknown_variable_stops_the_start_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="MEDUSA_PROT is not known; did you mean MEDUSA_PORT"):
        load_settings({}, {"MEDUSA_PROT": "1", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("m.yaml", "prot: 1", "did you mean port"),
        ("m.yaml", "- 1\n- 2", "cannot be read"),
        ("m.yaml", "port: [", "cannot be read"),
        ("m.toml", "port = ", "cannot be read"),
        ("m.json", "{}", "must end in"),
        ("m.yaml", "port: [1]", "--port"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_fault(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"config": str(tmp_path / name)})

    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_is_never_shown() -> None:
    assert "sesame" not in repr(load_settings({"api_key": "sesame,sezam"}))


def shown_keys(settings: Settings) -> list[str]:
    return [key.get_secret_value() for key in settings.api_key]


def test_several_keys_are_separated_by_commas_or_a_list_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.yaml").write_text("api_key: [sesame, 'se,zam']")
    (tmp_path / "m.toml").write_text('api_key = "sesame"')

    assert shown_keys(load_settings({})) == []
    assert shown_keys(load_settings({"api_key": "sesame, sezam"})) == ["sesame", "sezam"]
    assert shown_keys(load_settings({"config": str(tmp_path / "m.yaml")})) == ["sesame", "se,zam"]
    assert shown_keys(load_settings({"config": str(tmp_path / "m.toml")})) == ["sesame"]
    monkeypatch.setenv("MEDUSA_API_KEY", "[sesame")
    assert shown_keys(load_settings({})) == ["[sesame"]


@pytest.mark.parametrize("text", ["api_key: [sesame, 5]", "api_key: {sesame: 5}", "api_key: [[sesame]]", "api_key: 5"])
def test_a_key_is_not_shown_when_it_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="--api-key") as caught:
        load_settings({"config": str(tmp_path / "m.yaml")})

    assert "sesame" not in str(caught.value)
    assert "sesame" not in str(caught.value.__cause__)


def test_every_option_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
