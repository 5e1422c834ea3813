"""Run the server in this process: listen, load, say so, serve until a signal ends it."""

import asyncio
import json
import logging
import math
import shlex
import signal
import socket
import time
from importlib import metadata
from types import FrameType

import uvicorn
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from medusa_core.errors import ConfigurationError, MedusaError
from server.allocator import share_arenas
from server.app import http_config
from server.assembly import assemble
from server.logs import LevelSwitch, configure_logs, fill_standard_streams, rendering_of
from server.open_files import ScarceFiles, connections_within, raise_limit
from server.settings import ENV_PREFIX, Settings
from server.worker.client import WorkerClient
from server.worker.messages import WorkerInfo

__all__ = ["banner", "open_port", "run_server"]

logger = logging.getLogger("medusa.server")

INTERRUPTED = 130
# Streams that outlast the drain get a final error event this long before uvicorn cuts them off.
FAREWELL_S = 1.0
LOOK_S = 0.05


def open_port(host: str, port: int) -> socket.socket:
    """Listen before anything is loaded, so that a port in use is told at once.

    Raises ConfigurationError that names the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host!r}: {error.strerror}; choose another --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = f"cannot listen on port {port} of {host}: {error.strerror}"
        raise ConfigurationError(f"{reason}; choose another with --port or {ENV_PREFIX}PORT") from error
    return listener


def banner(settings: Settings, info: WorkerInfo, port: int, has_chat_template: bool) -> str:
    """What a newcomer needs after the start: where, what, and a line to paste."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name = settings.served_name
    if info.num_heads > 0:
        heads = f"{info.num_heads} draft heads" + (f" from {info.heads}" if info.heads is not None else "")
        heads += ", their adapter merged into the model" if info.adapter is not None else ""
    else:
        heads = f"none found: {_without_heads(settings)}; `medusa train` makes some"
    question = "What does textwrap.dedent do?" if settings.model == "demo" else "Hello!"
    chat = {"messages": [{"role": "user", "content": question}]}
    completion = {"prompt": question, "max_tokens": 64}
    path = "/v1/chat/completions" if has_chat_template else "/v1/completions"
    body = {"model": name, **(chat if has_chat_template else completion), "stream": True}
    # of several keys in the variable the shell takes the first
    variable = f"${{{ENV_PREFIX}API_KEY%%,*}}" if len(settings.api_key) > 1 else f"${ENV_PREFIX}API_KEY"
    key = ["-H", f"Authorization: Bearer {variable}"] if settings.api_key else []
    words = ["curl", "-N", f"{url}{path}", "-H", "Content-Type: application/json", *key]
    # the shell must fill in the key, so that word alone is quoted with double quotes
    line = " ".join(f'"{word}"' if "$" in word else shlex.quote(word) for word in words)
    rows = {
        **({"Page": f"{url}/"} if settings.playground else {}),
        "URL": f"{url}/v1",
        "Model": name if name == info.model else f"{name} ({info.model})",
        "Device": f"{info.device}, {info.dtype}"
        + (f", {info.quantization} weights" if info.quantization != "none" else ""),
        "Heads": heads,
        "Tree": _tree(info),
        "Context": f"{info.max_context} tokens"
        + ("" if has_chat_template else "; no chat template, see --chat-template"),
        "API key": "required" if settings.api_key else "none needed",
    }
    lines = [f"  {label:<8} {value}" for label, value in rows.items()]
    call = f"  {line} \\\n    -d {shlex.quote(json.dumps(body))}"
    return "\n".join([f"Medusa Server {metadata.version('medusa-server')}", *lines, "", "Try it:", call])


def _without_heads(settings: Settings) -> str:
    """Who drafts where there are no heads, whatever the size of the trees."""
    chosen = {"text is looked up": settings.prompt_lookup, "tokens are recycled": settings.recycling}
    drafting = [what for what, is_on in chosen.items() if is_on]
    return f"{' and '.join(drafting)} instead" if drafting else "only forms and predictions are drafted"


def _tree(info: WorkerInfo) -> str:
    """How large trees are, and who says so."""
    if info.tree_sizes == ():
        return f"{info.tree_nodes} nodes, {info.tree}: {info.tree_reason}"
    if len(info.tree_sizes) == 1:
        return "none pays here: steps were timed"
    *smaller, largest = info.tree_sizes
    return f"{', '.join(map(str, smaller))} or {largest} nodes, the fastest at every step by what is accepted"


async def _watch_loading(worker: WorkerClient, console: Console) -> WorkerInfo:
    """Show how far loading is until the worker is ready; a bar on a terminal, a line per stage elsewhere."""
    loading = asyncio.create_task(worker.wait_loaded())
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(worker.state.detail, total=1.0)
        shown = ""
        while not loading.done():
            progress.update(task, description=worker.state.detail, completed=worker.state.share)
            if not console.is_terminal and worker.state.detail != shown:
                shown = worker.state.detail
                console.print(shown, markup=False, highlight=False, soft_wrap=True)
            await asyncio.wait((loading,), timeout=0.1)
    return loading.result()


class _DrainingServer(uvicorn.Server):
    """Ends in order: the first signal refuses new requests and lets running answers end, a second one ends at once.

    Until they have ended it listens on, so that probes are answered and new requests are told to come back.
    """

    def __init__(self, config: uvicorn.Config, worker: WorkerClient, timeout_s: float) -> None:
        super().__init__(config)
        self._worker, self._timeout_s = worker, timeout_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn hurries for a second Ctrl-C only
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        self._worker.drain(max(0.0, self._timeout_s - FAREWELL_S))
        while self._worker.is_busy and not self.force_exit and time.monotonic() < deadline_s:
            await asyncio.sleep(LOOK_S)
        # what is left of the time is for clients that have not read all of their answer
        left_s = 0 if self.force_exit else max(1, math.ceil(deadline_s - time.monotonic()))
        self.config.timeout_graceful_shutdown = left_s
        await super().shutdown(sockets)
        self._worker.kill()


async def _serve(settings: Settings, listener: socket.socket, factory: str, console: Console) -> None:
    assembly = await asyncio.to_thread(assemble, settings, factory)
    worker = assembly.worker
    asyncio.get_running_loop().set_exception_handler(ScarceFiles(time.monotonic))
    switch = LevelSwitch(settings.log_level, worker.set_log_level)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, switch.toggle)
    # not SIGHUP: a terminal that closes sends it, and must not leave a server behind
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, worker.reload)
    server = _DrainingServer(http_config(assembly.app, settings, assembly.metrics), worker, settings.shutdown_timeout_s)
    serving = asyncio.create_task(server.serve([listener]))
    loading = asyncio.create_task(_watch_loading(worker, console))
    try:
        await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            info, port = loading.result(), listener.getsockname()[1]
            text = banner(settings, info, port, assembly.codec.has_chat_template)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        await serving
    except MedusaError:
        server.should_exit = True
        await serving
        raise
    finally:
        loading.cancel()
        worker.kill()


def run_server(settings: Settings, factory: str, console: Console) -> None:
    """Serve until a signal ends it.

    factory: `package.module:name` of the worker's engine factory.

    Raises ConfigurationError when the port is taken and CheckpointError when the model cannot be loaded.
    """
    fill_standard_streams()
    configure_logs(rendering_of(settings.log_format), settings.log_level, "server")
    share_arenas()
    fitting = connections_within(settings.max_connections, raise_limit())
    if fitting < settings.max_connections:
        reason = "connections are taken at one time, not %d: more would leave no open files for the rest"
        logger.warning(f"%d {reason}", fitting, settings.max_connections)
        settings = settings.model_copy(update={"max_connections": fitting})
    listener = open_port(settings.host, settings.port)
    try:
        asyncio.run(_serve(settings, listener, factory, console))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    finally:
        listener.close()
