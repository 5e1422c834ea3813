"""`medusa serve`, except that its worker runs the fake engine: `python -m tests.server.serve_fake OPTION=VALUE ...`."""

import signal
import sys

from server.commands.shared import one_line_errors, steady_console
from server.serving import run_server
from server.settings import load_settings
from tests.server import fake_engine

if __name__ == "__main__":
    # as at a terminal, also where the tests run in the background, whose programs ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = steady_console()
    with one_line_errors(console):
        run_server(load_settings(dict(word.split("=", 1) for word in sys.argv[1:])), fake_engine.FACTORY, console)
