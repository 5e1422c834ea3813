"""`medusa serve`."""

from typing import Annotated, Any

import typer
from rich.console import Console

from server.commands.shared import one_line_errors, say, steady_console
from server.settings import ENV_PREFIX, Settings, load_settings, origins

__all__ = ["serve"]

Text = str | None
# What stands for an option's value in the help; a flag takes none.
METAVARS: dict[Any, str | None] = {int: "<int>", int | None: "<int>", bool: None}

# Under which heading the help lists each setting.
PANELS = {
    "Model": (
        "model", "heads", "device", "dtype", "quantize", "adapter", "max_context", "chat_template",
        "served_model_name", "any_model_name",
    ),
    "Speculation": ("tree_nodes", "tree", "prompt_lookup", "recycling", "draft_vocabulary"),
    "Speed and memory": (
        "prefix_cache", "threads", "compile", "runner", "attention", "record_prompts", "compile_steps", "int8_heads",
        "delivery_ms",
    ),
    "Network and keys": (
        "host", "port", "api_key", "cors_origins", "playground", "open_metrics", "open_docs",
    ),
    "Limits": (
        "queue_size", "rate_limit", "max_body_bytes", "max_connections", "header_timeout_s", "body_timeout_s",
        "keep_alive_s", "send_timeout_s", "request_timeout_s", "step_timeout_s", "shutdown_timeout_s",
    ),
    "Logs and traces": ("log_level", "log_format", "otlp_endpoint"),
}  # fmt: skip


def _setting(name: str) -> Any:
    """The command line option of a setting, described where the setting is."""
    field = Settings.model_fields[name]
    default = "" if field.default in (None, ()) else f"default {field.default}; "
    option = name.replace("_", "-")
    return typer.Option(
        f"--{option}/--no-{option}" if field.annotation is bool else f"--{option}",
        help=f"{field.description} ({default}{ENV_PREFIX}{name.upper()})",
        metavar=METAVARS.get(field.annotation, "<text>"),
        show_default=False,
        rich_help_panel=next((panel for panel, names in PANELS.items() if name in names), None),
    )


def _show(settings: Settings, found: dict[str, str]) -> None:
    out = Console(soft_wrap=True)
    for name in Settings.model_fields:
        value = getattr(settings, name)
        # keys are secrets, which spell themselves in stars
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        say(out, f"{name:<20} {text if text and value is not None else '-':<28} {found[name]}")


def serve(
    model: Annotated[Text, _setting("model")] = None,
    heads: Annotated[Text, _setting("heads")] = None,
    host: Annotated[Text, _setting("host")] = None,
    port: Annotated[Text, _setting("port")] = None,
    api_key: Annotated[Text, _setting("api_key")] = None,
    cors_origins: Annotated[Text, _setting("cors_origins")] = None,
    device: Annotated[Text, _setting("device")] = None,
    dtype: Annotated[Text, _setting("dtype")] = None,
    max_context: Annotated[Text, _setting("max_context")] = None,
    queue_size: Annotated[Text, _setting("queue_size")] = None,
    served_model_name: Annotated[list[str] | None, _setting("served_model_name")] = None,
    any_model_name: Annotated[bool | None, _setting("any_model_name")] = None,
    tree_nodes: Annotated[Text, _setting("tree_nodes")] = None,
    tree: Annotated[Text, _setting("tree")] = None,
    prompt_lookup: Annotated[bool | None, _setting("prompt_lookup")] = None,
    draft_vocabulary: Annotated[Text, _setting("draft_vocabulary")] = None,
    recycling: Annotated[bool | None, _setting("recycling")] = None,
    prefix_cache: Annotated[Text, _setting("prefix_cache")] = None,
    compile: Annotated[bool | None, _setting("compile")] = None,
    quantize: Annotated[Text, _setting("quantize")] = None,
    adapter: Annotated[bool | None, _setting("adapter")] = None,
    runner: Annotated[Text, _setting("runner")] = None,
    attention: Annotated[Text, _setting("attention")] = None,
    record_prompts: Annotated[bool | None, _setting("record_prompts")] = None,
    compile_steps: Annotated[bool | None, _setting("compile_steps")] = None,
    int8_heads: Annotated[Text, _setting("int8_heads")] = None,
    delivery_ms: Annotated[Text, _setting("delivery_ms")] = None,
    threads: Annotated[Text, _setting("threads")] = None,
    chat_template: Annotated[Text, _setting("chat_template")] = None,
    max_body_bytes: Annotated[Text, _setting("max_body_bytes")] = None,
    max_connections: Annotated[Text, _setting("max_connections")] = None,
    header_timeout_s: Annotated[Text, _setting("header_timeout_s")] = None,
    body_timeout_s: Annotated[Text, _setting("body_timeout_s")] = None,
    keep_alive_s: Annotated[Text, _setting("keep_alive_s")] = None,
    send_timeout_s: Annotated[Text, _setting("send_timeout_s")] = None,
    rate_limit: Annotated[Text, _setting("rate_limit")] = None,
    open_metrics: Annotated[bool | None, _setting("open_metrics")] = None,
    open_docs: Annotated[bool | None, _setting("open_docs")] = None,
    playground: Annotated[bool | None, _setting("playground")] = None,
    request_timeout_s: Annotated[Text, _setting("request_timeout_s")] = None,
    step_timeout_s: Annotated[Text, _setting("step_timeout_s")] = None,
    shutdown_timeout_s: Annotated[Text, _setting("shutdown_timeout_s")] = None,
    log_level: Annotated[Text, _setting("log_level")] = None,
    log_format: Annotated[Text, _setting("log_format")] = None,
    otlp_endpoint: Annotated[Text, _setting("otlp_endpoint")] = None,
    config: Annotated[Text, _setting("config")] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="say each setting, its value and where it is from, and exit")
    ] = False,
) -> None:
    """Start the OpenAI-compatible server.

    Every option can also be set as a MEDUSA_ variable or in the file named by --config; the command line goes first,
    then variables, then the file.
    """
    given = {name: value for name, value in locals().items() if name in Settings.model_fields}
    console = steady_console()
    with one_line_errors(console):
        settings = load_settings(given)
        if show_settings:
            _show(settings, origins(settings, given))
            return
        from server.serving import run_server
        from server.worker.client import ENGINE_FACTORY

        run_server(settings, ENGINE_FACTORY, console)
