"""transformers.generate behind the smallest HTTP server that streams: one thread, one request at a time.

No event loop and no second thread, which would only slow generation down. `POST /generate` takes `prompt` (token ids),
`max_tokens` and `way` (dynamic, static or lookup) and answers with one event for each pass that brought tokens, then
one with the number of passes behind the first. Greedy.

Usage: python benchmarks/through_http/generate_server.py --model FOLDER --port PORT [--dtype float32]
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

__all__ = ["WAYS", "GenerateServer"]

# What generate is told beside what all of them are.
WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 10},
}


class _Events(BaseStreamer):
    """Sends tokens to the client as they are decided."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._has_seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with what each pass decided."""
        if self._has_seen_prompt:
            self.send({"tokens": value.flatten().tolist()})
        self._has_seen_prompt = True

    def end(self) -> None:
        """Called once at the end."""

    def send(self, event: dict[str, Any]) -> None:
        """One event."""
        self._write(b"data: " + json.dumps(event).encode() + b"\n\n")


class GenerateServer(HTTPServer):
    """The server; `model` is what it generates with."""

    def __init__(self, port: int, model: Any) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model, self.passes = model, 0
        model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    server: GenerateServer

    def do_GET(self) -> None:
        """Whoever gets an answer knows that the model is loaded."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        """Generate; the connection's end is the answer's."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        events, ids = _Events(self.wfile.write), torch.tensor([body["prompt"]])
        self.server.passes = 0
        self.server.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=body["max_tokens"],
            do_sample=False,
            streamer=events,
            pad_token_id=0,
            **WAYS[body["way"]],
        )
        events.send({"steps": self.server.passes - 1})

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    GenerateServer(options.port, model.eval()).serve_forever()


if __name__ == "__main__":
    main()
