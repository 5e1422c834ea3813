"""Everything the operator may choose, read once at the start into one frozen value."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)
from yaml import YAMLError  # type: ignore[import-untyped]

from medusa_core.config import AttentionName, Int8Heads, Quantization, RunnerName, split_revision
from medusa_core.errors import ConfigurationError
from server.logs import LogFormat, LogLevel

__all__ = ["ENV_PREFIX", "Settings", "load_settings", "origins"]

ENV_PREFIX = "MEDUSA_"

# As browsers send it: lower case and without a path, so that comparing strings is enough.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,A-Z]+")

WEB_ADDRESS = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?")

FILE_SOURCES = {".yaml": YamlConfigSettingsSource, ".yml": YamlConfigSettingsSource, ".toml": TomlConfigSettingsSource}


def _auto_is_none(value: object) -> object:
    """`auto` leaves a count to the engine; pydantic would ask for a number alone."""
    if isinstance(value, str) and value != "auto" and not value.isdecimal():
        raise ValueError("give a whole number of 1 or more, or auto")
    return None if value == "auto" else value


def _none_is_for_ever(value: object) -> object:
    """Absence has a word, for the command line and the environment."""
    return None if value == "none" else value


def _listed(value: object) -> object:
    """Several values in one word, separated by commas; a configuration file may hold a list."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _origins_only(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin!r} is no origin; write scheme://host or scheme://host:port, or * for all")
    return origins


def _listed_each(value: object) -> object:
    """The same of each value, where an option may be given several times."""
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        return _listed(value)
    return tuple(part.strip() for words in value for part in words.split(","))


def _distinct_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(names):
        raise ValueError("a name is empty; give one name, or several separated by commas")
    return tuple(dict.fromkeys(names))


def _web_address(url: str | None) -> str | None:
    if url is not None and WEB_ADDRESS.fullmatch(url) is None:
        raise ValueError("write http://host:port or https://host:port, with a path where there is one")
    return url


def _no_key_is_empty(keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not all(key.get_secret_value() for key in keys):
        raise ValueError("an API key is empty; give one key, or several separated by commas")
    return keys


class Settings(BaseSettings):
    """Everything the operator may choose. Precedence: command line, MEDUSA_* variables, file, default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        validate_default=False,
        hide_input_in_errors=True,
    )

    model: str = Field(
        "demo", min_length=1, description="folder or hub id (owner/name@revision) of the base model; demo is built in"
    )
    heads: str | None = Field(None, description="id, folder or file of the draft heads; left out: inside the model")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    # the environment's value is words, not JSON
    api_key: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_no_key_is_empty)] = (
        Field((), description="key that clients must send as a bearer token, or several separated by commas")
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_origins_only)] = Field(
        (), description="origins whose pages may call from a browser, separated by commas; * for any"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 on a CPU, the checkpoint's own on CUDA"
    )
    max_context: int | None = Field(
        None, ge=1, description="tokens of one conversation; left out: the model's, <= 8192"
    )
    queue_size: int = Field(32, ge=0, description="requests that may wait while one is decoded")
    served_model_name: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed_each), AfterValidator(_distinct_names)
    ] = Field(
        (),
        description="name clients use, or several, separated by commas; answers show the first; left out: the model's",
    )
    any_model_name: bool = Field(
        False, description="take requests whatever model they name; answers name the served one"
    )
    tree_nodes: Annotated[int | None, BeforeValidator(_auto_is_none)] = Field(
        None, ge=1, description="nodes of one verified tree, root included; auto: the fastest at every step"
    )
    tree: Literal["dynamic", "static"] = Field(
        "dynamic", description="each step's best nodes, or the one shape that is best on average"
    )
    prompt_lookup: bool = Field(
        True, description="also draft what followed earlier in the text; off, trees are left to the others"
    )
    draft_vocabulary: int | None = Field(
        None, ge=1, description="tokens that heads may propose, the most frequent ones; left out: all"
    )
    recycling: bool = Field(
        True, description="also draft what the model last found likeliest behind each token; needs no heads"
    )
    prefix_cache: int | None = Field(
        None,
        ge=0,
        description="earlier conversations to keep, in MiB, or 0; left out: 256, or a tenth of a GPU's free memory",
    )
    compile: bool = Field(
        True, description="on a CPU, build kernels for small models with the system's C compiler, where there is one"
    )
    quantize: Quantization = Field(
        "none", description="hold the base's weights in few bits: none, int8, int4, fp8, bnb8 or bnb4"
    )
    adapter: bool = Field(True, description="merge the adapter that stands beside the heads, if one does")
    runner: RunnerName = Field(
        "auto", description="auto, eager or cuda_graph: on CUDA a step is recorded once and replayed, unless eager"
    )
    attention: AttentionName = Field(
        "bucketed", description="how the cache is read: bucketed, device_length, or auto: the faster of the two"
    )
    record_prompts: bool = Field(
        False, description="where steps are recorded, also compute prompts in a few recorded lengths"
    )
    compile_steps: bool = Field(False, description="where steps are recorded, let inductor compile them first")
    int8_heads: Int8Heads = Field(
        "auto", description="draft with int8 LM heads where that is faster: on, off, or auto: tried on a CPU only"
    )
    delivery_ms: float = Field(
        0.25, ge=0, allow_inf_nan=False, description="on a CPU, what a step's delivery takes beside its computation"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the worker; left out: all but one")
    chat_template: Path | None = Field(None, description="file with a Jinja chat template for models without one")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="largest request body")
    max_connections: int = Field(512, ge=1, description="clients that may be connected at one time")
    header_timeout_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="seconds a request's header may take to arrive"
    )
    body_timeout_s: float = Field(60.0, gt=0, allow_inf_nan=False, description="seconds a body may take to arrive")
    keep_alive_s: int = Field(75, ge=1, description="seconds a connection may wait for its next request")
    send_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="seconds a client may go without reading of its answer"
    )
    rate_limit: int | None = Field(
        None, ge=1, description="requests a key may ask in a minute, or all clients without keys; left out: any number"
    )
    open_metrics: bool = Field(True, description="/metrics needs no key")
    open_docs: bool = Field(False, description="/docs, /redoc and /openapi.json need no key")
    playground: bool = Field(True, description="a page at / to try the model; it needs no key, what it asks for does")
    request_timeout_s: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="seconds a request may take, waiting included"
    )
    step_timeout_s: Annotated[float | None, BeforeValidator(_none_is_for_ever)] = Field(
        120.0,
        ge=2,
        allow_inf_nan=False,
        description="seconds without a sign of life after which the worker is replaced; none: it is waited for",
    )
    shutdown_timeout_s: int = Field(30, ge=1, description="seconds running answers may take to end at SIGTERM")
    log_level: LogLevel = Field("info", description="critical, error, warning, info or debug; SIGUSR1 switches debug")
    log_format: LogFormat = Field(
        "auto", description="auto, console or json: lines for people on a terminal, else one JSON object each"
    )
    otlp_endpoint: Annotated[str | None, AfterValidator(_web_address)] = Field(
        None, description="collector that gets traces over HTTP, such as http://localhost:4318; left out: none"
    )
    config: Path | None = Field(None, description="YAML or TOML file with any of these options")

    @property
    def served_names(self) -> tuple[str, ...]:
        """The model's names in requests; a folder goes by its own name, a hub id without its revision."""
        if self.served_model_name:
            return self.served_model_name
        folder = Path(self.model)
        return (folder.resolve().name if folder.is_dir() else split_revision(self.model)[0],)

    @property
    def served_name(self) -> str:
        """The model's name in answers and metrics, whatever the request called it."""
        return self.served_names[0]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, then the file that either of them names."""
        chosen = init_settings().get("config", env_settings().get("config"))
        if chosen is None:
            return init_settings, env_settings
        path = Path(chosen)
        if not path.is_file():
            raise ConfigurationError(f"the configuration file {str(path)!r} does not exist")
        source = FILE_SOURCES.get(path.suffix.lower())
        if source is None:
            raise ConfigurationError(f"the configuration file {str(path)!r} must end in .yaml, .yml or .toml")
        return init_settings, env_settings, source(settings_cls, path)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """pydantic-settings ignores a misspelt variable, and the operator would never learn of it."""
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for name in environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            raise ConfigurationError(f"the variable {name} is not known{_nearest(name.upper(), known)}")


def _one_line(error: ValidationError) -> str:
    """The first complaint, with the names under which the operator can change the value."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return (
            f"the option {name!r} in the configuration file is not known{_nearest(name, list(Settings.model_fields))}"
        )
    option = name.replace("_", "-")
    got = "" if name == "api_key" else f", got {first['input']!r}"
    # what a validator of ours raised comes back with this prefix
    message = first["msg"].removeprefix("Value error, ")
    return f"--{option} ({ENV_PREFIX}{name.upper()}): {message}{got}"


def load_settings(chosen: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Merge the command line's values with the environment and the configuration file.

    chosen:  options given on the command line, by field name; None stands for "not given".
    environ: where unknown MEDUSA_ names are looked for, the process's own when None.

    Raises ConfigurationError, one line that names the option, its limit and its variable.
    """
    _refuse_unknown_variables(environ if environ is not None else os.environ)
    try:
        settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(_one_line(error)) from error
    except (ValueError, TypeError, OSError, YAMLError, SettingsError) as error:
        # malformed YAML or TOML, or a file that is no mapping
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"the configuration file cannot be read: {reason}") from error
    if settings.chat_template is not None and not settings.chat_template.is_file():
        raise ConfigurationError(f"the chat template {str(settings.chat_template)!r} does not exist")
    return settings


def origins(settings: Settings, chosen: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each value is from: `command line`, `variable`, `file` or `default`; arguments as of load_settings."""
    variables = environ if environ is not None else os.environ
    named = {name.lower() for name, value in variables.items() if value}
    path = settings.config
    filed = FILE_SOURCES[path.suffix.lower()](Settings, path)() if path is not None else {}

    def of(name: str) -> str:
        if chosen.get(name) is not None:
            return "command line"
        if f"{ENV_PREFIX}{name}".lower() in named:
            return "variable"
        return "file" if name in filed else "default"

    return {name: of(name) for name in Settings.model_fields}
