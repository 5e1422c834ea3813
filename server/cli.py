"""The `medusa` command. Heavy imports stand inside the commands, so that --help answers at once."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from medusa_core.errors import ConfigurationError, MedusaError
from server.settings import ENV_PREFIX, Settings, load_settings

__all__ = [
    "create_cli",
    "distill",
    "generate",
    "main",
    "one_line_errors",
    "serve",
    "train",
]

USAGE_ERROR, FAILURE = 2, 1


def _setting(name: str) -> Any:
    """The command line option of a setting, described where the setting is."""
    field = Settings.model_fields[name]
    default = "" if field.default in (None, ()) else f"default {field.default}; "
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} ({default}{ENV_PREFIX}{name.upper()})",
        metavar="<int>" if field.annotation in (int, int | None) else "<text>",
        show_default=False,
    )


Text = str | None


@contextmanager
def one_line_errors(console: Console) -> Iterator[None]:
    """What goes wrong on purpose is one line and a status, never a traceback."""
    try:
        yield
    except MedusaError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(USAGE_ERROR if isinstance(error, ConfigurationError) else FAILURE) from None


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
    served_model_name: Annotated[Text, _setting("served_model_name")] = None,
    tree_nodes: Annotated[Text, _setting("tree_nodes")] = None,
    quantize: Annotated[Text, _setting("quantize")] = None,
    threads: Annotated[Text, _setting("threads")] = None,
    chat_template: Annotated[Text, _setting("chat_template")] = None,
    max_body_bytes: Annotated[Text, _setting("max_body_bytes")] = None,
    request_timeout_s: Annotated[Text, _setting("request_timeout_s")] = None,
    shutdown_timeout_s: Annotated[Text, _setting("shutdown_timeout_s")] = None,
    log_level: Annotated[Text, _setting("log_level")] = None,
    config: Annotated[Text, _setting("config")] = None,
) -> None:
    """Start the OpenAI-compatible server.

    Every option can also be set as a MEDUSA_ variable or in the file named by --config; the command line goes first,
    then variables, then the file.
    """
    given = dict(locals())
    console = Console(stderr=True)
    with one_line_errors(console):
        settings = load_settings(given)
        from server.serving import run_server
        from server.worker.client import ENGINE_FACTORY

        run_server(settings, ENGINE_FACTORY, console)


def generate(
    prompt: Annotated[str, typer.Argument(help="what to answer, or with --raw what to continue")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder; demo is built in")] = "demo",
    heads: Annotated[Text, typer.Option(help="id, folder or file of the draft heads")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    max_context: Annotated[int | None, typer.Option(min=1, help="tokens of prompt and answer together")] = None,
    tree_nodes: Annotated[int | None, typer.Option(min=1, help="nodes of one verified tree")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja chat template for models without one")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="continue the text instead of answering it as a chat")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest answer; left out: what the context holds")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy; left out: the model's")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="left out: the model's")] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answer")] = None,
    mode: Annotated[str, typer.Option(help="auto, tree, chain or off")] = "auto",
) -> None:
    """Answer one prompt in the terminal, with the statistics of its speculation."""
    out, console = Console(soft_wrap=True), Console(stderr=True)
    with one_line_errors(console):
        if mode not in ("auto", "tree", "chain", "off"):
            raise ConfigurationError(f"--mode is {mode!r}, it must be auto, tree, chain or off")
        from medusa_core.text import TextCodec

        codec = TextCodec.load(model, chat_template)
        tokens = codec.encode(prompt) if raw or not codec.has_chat_template else _encode_question(codec, prompt)
        from medusa_core import Engine, EngineConfig, GenerationRequest, SamplingParams, SpeculationParams

        engine_config = EngineConfig(
            model=model,
            heads=heads,
            device=device,
            dtype=dtype,
            max_context=max_context,
            tree_nodes=tree_nodes,
            num_threads=threads,
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("loading", total=1.0)
            engine = Engine.load(
                engine_config, lambda stage, share: progress.update(task, description=stage, completed=share)
            )
        chosen = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
        sampling = {**engine.info.default_sampling, **_given(chosen)}
        request = GenerationRequest(
            prompt=tuple(tokens),
            sampling=SamplingParams(**sampling, seed=seed),
            speculation=SpeculationParams(mode=mode),
            max_tokens=max_tokens,
        )
        text = codec.stream(prompt=tokens if raw or not codec.has_chat_template else ())
        steps = emitted = step_tokens = 0
        began = time.monotonic()
        for delta in engine.generate(request):
            shown = delta.tokens[:-1] if delta.finish_reason == "stop" else delta.tokens
            out.print(text.push(shown).text, end="", markup=False, highlight=False)
            emitted += len(delta.tokens)
            if delta.prompt is not None:
                began = time.monotonic()
            if delta.step is not None:
                steps += 1
                step_tokens += len(delta.tokens)
        out.print(text.finish(), markup=False, highlight=False)
        seconds = time.monotonic() - began
        speed = (
            f", {step_tokens / steps:.2f} tokens per step, {step_tokens / seconds:.1f} tokens/s" if steps > 0 else ""
        )
        console.print(f"[{emitted} tokens{speed}]", style="dim", markup=False, highlight=False)


def distill(
    prompts: Annotated[Path, typer.Option(help="JSON lines with `messages` or `text`; answers in them are ignored")],
    out: Annotated[Path, typer.Option(help="where the answers go, JSON lines; a second run takes up where one ended")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder of the model that answers")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="prompts answered at once")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answers")] = None,
) -> None:
    """Let the model write the answers its own heads are trained on."""
    console = Console(stderr=True)
    with one_line_errors(console):
        _need_file(prompts, "--prompts")
        from medusa_core import DistillPlan
        from medusa_core import distill as run_distill

        chosen = {"max_tokens": max_tokens, "temperature": temperature, "batch_size": batch_size, "seed": seed}
        answers = run_distill(model, prompts, out, DistillPlan(**_given(chosen)), device)
        console.print(f"{answers} answers in {out}", markup=False, highlight=False, soft_wrap=True)


def train(
    data: Annotated[Path, typer.Option(help="JSON lines, best the model's own answers (medusa distill)")],
    out: Annotated[Path, typer.Option(help="folder of the heads; a run that was ended takes up where it was")],
    model: Annotated[str, typer.Option(help="Hugging Face id or folder of the base model")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    recipe: Annotated[str, typer.Option(help="medusa1: the base model stays as it is")] = "medusa1",
    heads: Annotated[int | None, typer.Option(min=1, help="number of heads")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the data")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="of AdamW, after the warm-up")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="longer examples are cut")] = None,
    seed: Annotated[int | None, typer.Option(help="order of the data and start of the heads")] = None,
) -> None:
    """Train draft heads for a model."""
    console = Console(stderr=True)
    with one_line_errors(console):
        if recipe != "medusa1":
            raise ConfigurationError(f"--recipe {recipe} is not built yet; only medusa1 can be chosen")
        _need_file(data, "--data")
        from medusa_core import TrainPlan
        from medusa_core import train as run_train

        chosen = {
            "num_heads": heads,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "max_length": max_length,
            "seed": seed,
        }
        run_train(model, data, out, TrainPlan(**_given(chosen)), device)
        serve_them = f"medusa serve --model {shlex.quote(model)} --heads {shlex.quote(str(out))}"
        console.print(f"heads in {out}; serve them with: {serve_them}", markup=False, highlight=False, soft_wrap=True)


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that were chosen; the others keep the default of the plan they go into."""
    return {name: value for name, value in chosen.items() if value is not None}


def _need_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise ConfigurationError(f"{option}: the file {str(path)!r} does not exist")


def _encode_question(codec: Any, prompt: str) -> list[int]:
    tokens: list[int] = codec.encode_chat([{"role": "user", "content": prompt}])
    return tokens


def _print_version(is_asked: bool) -> None:
    if is_asked:
        Console().print(f"medusa {metadata.version('medusa-server')}", markup=False, highlight=False)
        raise typer.Exit


def _medusa(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Answers one request at a time, as fast as the model allows: an OpenAI-compatible server with Medusa trees."""


def create_cli() -> typer.Typer:
    """The commands by name."""
    cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    cli.callback()(_medusa)
    cli.command("serve")(serve)
    cli.command("generate")(generate)
    cli.command("distill")(distill)
    cli.command("train")(train)
    return cli


def main() -> None:
    """Entry point of the `medusa` script."""
    create_cli()()
