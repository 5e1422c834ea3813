"""`medusa generate`."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from medusa_core.errors import ConfigurationError
from server.commands.options import Adapter, ChatTemplate, Device, DType, Heads, MaxContext, Model, Quantize, Threads
from server.commands.shared import given, one_line_errors

__all__ = ["generate"]


def generate(
    prompt: Annotated[str, typer.Argument(help="what to answer, or with --raw what to continue")],
    model: Model = "demo",
    heads: Heads = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = "none",
    adapter: Adapter = True,
    max_context: MaxContext = None,
    tree_nodes: Annotated[
        int | None, typer.Option(min=1, help="nodes of one verified tree; left out: the fastest at every step")
    ] = None,
    threads: Threads = None,
    chat_template: ChatTemplate = None,
    raw: Annotated[bool, typer.Option("--raw", help="continue the text instead of answering it as a chat")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="longest answer; left out: what the context holds")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy; left out: the model's")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="left out: the model's")] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="left out: the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answer")] = None,
    mode: Annotated[str, typer.Option(help="auto, tree, static, chain or off")] = "auto",
) -> None:
    """Answer one prompt in the terminal, with the statistics of its speculation."""
    out, console = Console(soft_wrap=True), Console(stderr=True)
    with one_line_errors(console):
        if mode not in ("auto", "tree", "static", "chain", "off"):
            raise ConfigurationError(f"--mode is {mode!r}, it must be auto, tree, static, chain or off")
        from medusa_core.text import TextCodec

        codec = TextCodec.load(model, chat_template)
        tokens = codec.encode(prompt) if raw or not codec.has_chat_template else _encode_question(codec, prompt)
        from medusa_core import Engine, EngineConfig, GenerationRequest, SamplingParams, SpeculationParams

        engine_config = EngineConfig(
            model=model,
            heads=heads,
            device=device,
            dtype=dtype,
            quantize=quantize,
            adapter=adapter,
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
        sampling = {**engine.info.default_sampling, **given(chosen)}
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


def _encode_question(codec: Any, prompt: str) -> list[int]:
    tokens: list[int] = codec.encode_chat([{"role": "user", "content": prompt}])
    return tokens
