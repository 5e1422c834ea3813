"""The peers of a comparison, started: our own server in several ways, transformers behind HTTP, llama.cpp's server."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.through_http.asking import GeneratePeer, LlamaPeer, MedusaPeer, StreamPeer
from benchmarks.through_http.figures import GENERATE, PLAIN
from benchmarks.through_http.gguf_file import write_gguf
from benchmarks.through_http.launching import free_port, serving
from medusa_core.config import model_location
from medusa_core.text import TextCodec

__all__ = ["CONTEXT", "Model", "foreign_peers", "our_peers"]

# The longest conversation of any peer, so that all of them hold a cache of one size.
CONTEXT = 1024
MEDUSA = (sys.executable, "-c", "from server.cli import main; main()")


@dataclass(frozen=True)
class Model:
    """What is served: the same files to every peer.

    nodes: of the trees that have a size of their own; the automatic choice keeps its own ladder.
    """

    name: str
    heads: str | None
    nodes: int
    codec: TextCodec
    stop_tokens: frozenset[int]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(model_location(self.name))


@contextmanager
def our_peers(model: Model, work: Path) -> Iterator[dict[str, StreamPeer]]:
    """Our server: plainly, with a static tree, with trees of the heads alone, with all that drafts, and as it comes."""
    common = [*MEDUSA, "serve", "--model", model.name, "--threads", "1"]
    common += [
        "--prefix-cache",
        "0",
        "--max-context",
        str(CONTEXT),
        "--served-model-name",
        "benchmarked",
        "--log-level",
        "warning",
    ]
    if model.heads is not None:
        common += ["--heads", model.heads]
    fixed = ["--tree-nodes", str(model.nodes)]
    servers = {"fixed": fixed, "heads": [*fixed, "--no-prompt-lookup", "--no-recycling"], "auto": []}
    with ExitStack() as stack:
        ports = {}
        for name, options in servers.items():
            port = free_port()
            command = [*common, *options, "--port", str(port)]
            ports[name] = stack.enter_context(serving(command, port, "/ready", work / f"ours-{name}.log"))

        def peer(server: str, mode: str) -> MedusaPeer:
            return MedusaPeer(ports[server], "benchmarked", {"mode": mode})

        yield {
            PLAIN: peer("fixed", "off"),
            f"static tree, N={model.nodes}": peer("fixed", "static"),
            f"heads only, N={model.nodes}": peer("heads", "tree"),
            f"merged tree, N={model.nodes}": peer("fixed", "tree"),
            "auto": peer("auto", "auto"),
        }


@contextmanager
def foreign_peers(model: Model, work: Path, llama_server: Path | None) -> Iterator[dict[str, StreamPeer]]:
    """transformers.generate in three ways, and llama.cpp's server in two where it is built."""
    with ExitStack() as stack:
        port = free_port()
        program = Path(__file__).with_name("generate_server.py")
        command = [sys.executable, str(program), "--model", str(model.folder), "--port", str(port)]
        stack.enter_context(serving(command, port, "/", work / "generate.log"))
        peers: dict[str, StreamPeer] = {
            GENERATE: GeneratePeer(port, "dynamic", model.codec, model.stop_tokens),
            "generate, static cache": GeneratePeer(port, "static", model.codec, model.stop_tokens),
            "generate, prompt lookup": GeneratePeer(port, "lookup", model.codec, model.stop_tokens),
        }
        if llama_server is not None:
            weights = work / "model-f32.gguf"
            write_gguf(model.folder, weights)
            for name, more in LLAMA_WAYS.items():
                port = free_port()
                command = [str(llama_server), "--model", str(weights), "--port", str(port), *LLAMA_OPTIONS, *more]
                log = work / f"{name.replace(' ', '-').replace(',', '')}.log"
                stack.enter_context(serving(command, port, "/health", log))
                peers[name] = LlamaPeer(port, model.codec, model.stop_tokens)
        yield peers


# One thread and float32 throughout, as everybody; nothing is kept between requests.
LLAMA_OPTIONS = (
    "--host", "127.0.0.1", "--ctx-size", str(CONTEXT), "--parallel", "1", "--threads", "1", "--threads-batch", "1",
    "--cache-type-k", "f32", "--cache-type-v", "f32", "--cache-ram", "0", "--no-slots", "--log-disable",
)  # fmt: skip
LLAMA_WAYS: dict[str, tuple[str, ...]] = {
    "llama.cpp": (),
    "llama.cpp, n-gram drafts": ("--spec-type", "ngram-simple"),
}
