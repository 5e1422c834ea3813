"""A server put together from its settings: `medusa serve` holds one, each replica of deploy/ray another."""

import os
from dataclasses import dataclass

from fastapi import FastAPI

from medusa_core.text import TextCodec
from server.app import create_app, create_worker
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import create_tracing
from server.worker.client import WorkerClient

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """The parts of a server that whoever runs it needs; nothing is started yet.

    app:    starts and stops the worker with its lifespan.
    worker: answers, once it has loaded.
    codec:  the model's text.
    metrics: what all of them count in.
    """

    app: FastAPI
    worker: WorkerClient
    codec: TextCodec
    metrics: Metrics


def assemble(settings: Settings, factory: str) -> Assembly:
    """Load the tokenizer and put the rest around it; takes a moment, so call it off the event loop.

    factory: `package.module:name` of the engine factory the worker calls.

    Raises what TextCodec.load and create_tracing raise.
    """
    tracing = create_tracing(settings.otlp_endpoint, os.environ)
    codec = TextCodec.load(settings.model, settings.chat_template, settings.served_name)
    metrics = Metrics(settings.served_name, settings.queue_size)
    worker = create_worker(settings, metrics, factory)
    return Assembly(create_app(settings, worker, codec, metrics, tracing), worker, codec, metrics)
