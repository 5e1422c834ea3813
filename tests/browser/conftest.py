"""A real browser on the page, and servers for it: the demo model's, and the fake engine's, which can misbehave."""

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.live_server import clean_environment, serving
from tests.server.running import Running, running

ROOT = Path(__file__).parents[2]
# Nothing of it may ask anybody but the server for anything; and it runs as root, in containers too.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
TIMEOUT_MS = 30_000
TELL_VIOLATIONS = "addEventListener('securitypolicyviolation', (it) => console.error(`refused: ${it.blockedURI}`))"


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true in the page, whose policy forbids the browser's own way to wait for that."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)


@dataclass
class Visit:
    """The page in a browser, and what went wrong in there.

    forgiven: beginnings of console errors that a test brings about; everything else fails it.
    """

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.problems.append(f"asked another host: {request.url}")
        if request.method == "POST":
            self.asked.append(request.post_data_json)

    def open(self, ready: bool = True) -> Page:
        self.page.goto(f"{self.url}/")
        if ready:
            self.page.wait_for_selector("#health[data-state=ready]")
        return self.page

    def ask(self, question: str, **options: str) -> None:
        """Ask and wait for the end of the answer; options are values of the form, by name."""
        self.begin(question, **options)
        self.page.wait_for_selector("#send:not([hidden])")

    def begin(self, question: str, **options: str) -> None:
        for name, value in options.items():
            control = self.page.locator(f"#options [name={name}]")
            if control.evaluate("(it) => it.closest('details') !== null"):
                self.page.evaluate("document.querySelector('#options details').open = true")
            if control.evaluate("(it) => it.localName") == "select":
                control.select_option(value)
            else:
                control.fill(value)
        self.page.fill("#prompt", question)
        self.page.click("#send:enabled")

    @property
    def answer(self) -> str:
        """What the newest answer reads as."""
        shown = ".exchange:last-child .answer:first-child .text > :not([hidden])"
        return self.page.locator(shown).text_content() or ""

    @property
    def said(self) -> str:
        """What a screen reader was told last."""
        return self.page.locator("#announcer").text_content() or ""

    def has_no_horizontal_scroll(self) -> bool:
        found: bool = self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None, "no chromium is installed; `make tools` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Visits:
    """Opens pages, each in a profile of its own, and finds out what went wrong in them."""

    browser: Browser
    made: list[Visit] = field(default_factory=list)

    def __call__(self, url: str, **look: Any) -> Visit:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **look})
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(TELL_VIOLATIONS)
        visit = Visit(context.new_page(), url)
        visit.watch()
        self.made.append(visit)
        return visit


@pytest.fixture
def visits(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser)
    yield visits
    for visit in visits.made:
        visit.page.context.close()
        assert [text for text in visit.problems if not text.startswith(tuple(visit.forgiven))] == []


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo model as a user starts it."""
    folder, environment = tmp_path_factory.mktemp("demo"), clean_environment(PYTHONPATH=str(ROOT))
    with serving([str(Path(sys.executable).parent / "medusa"), "serve"], folder, environment) as url:
        yield url


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose model repeats the prompt; see tests/server/fake_engine.py."""
    with running(tmp_path_factory.mktemp("fake")) as server:
        yield server


@pytest.fixture
def demo(visits: Visits, demo_url: str) -> Visit:
    visit = visits(demo_url)
    visit.open()
    return visit


@pytest.fixture
def fake(visits: Visits, fake_server: Running) -> Visit:
    visit = visits(fake_server.url)
    visit.open()
    return visit


@pytest.fixture
def fake_url(fake_server: Running) -> str:
    return fake_server.url
