"""deep-chat, a frontend that runs in a browser, in a page of another origin, as docs/frontends.md sets it up."""

import functools
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.server.running import Running, running

ROOT = Path(__file__).parents[2]
# `make test-browser` installs it there
BUNDLE = ROOT / ".work" / "clients" / "node" / "node_modules" / "deep-chat" / "dist" / "deepChat.bundle.js"
ADDRESS, KEY = "http://127.0.0.1:8000", "sesame"
QUESTION = "Hello there"
TIMEOUT_S = 30


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and tells nobody."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Site:
    """A web site of somebody's own, whose page has the frontend in it."""

    folder: Path
    url: str

    def show(self, block: str, server: Running) -> None:
        text = block.replace(ADDRESS, server.url).replace("YOUR-KEY", KEY)
        (self.folder / "index.html").write_text(f"<!doctype html><title>A site</title>{text}", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    assert BUNDLE.exists(), f"{BUNDLE} is missing; `make test-browser` installs it"
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "deepChat.bundle.js").write_bytes(BUNDLE.read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_S * 1000)
    yield context.new_page()
    context.close()


def block() -> str:
    """What docs/frontends.md tells to write into the page."""
    text = (ROOT / "docs" / "frontends.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```html\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def ask(page: Page, question: str) -> Locator:
    """Type a question; what is answered, as far as it has come."""
    page.locator("deep-chat #text-input").click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    answer = page.locator("deep-chat .ai-message-text, deep-chat .error-message-text").last
    answer.wait_for()
    return answer


def test_a_site_of_an_allowed_origin_streams_an_answer_in_deep_chat(site: Site, page: Page, tmp_path: Path) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request) if request.method == "POST" else None)
    with running(tmp_path, api_key=KEY, cors_origins=site.url, any_model_name=True) as server:
        site.show(block(), server)
        page.goto(site.url)
        shown = ask(page, QUESTION)

        assert [request.url for request in asked] == [f"{server.url}/v1/chat/completions"]
        body = asked[0].post_data_json
        assert body["stream"] is True
        assert body["messages"][-1]["content"] == QUESTION
        whole = server.post("/v1/chat/completions", {**body, "stream": False}, headers={"X-Api-Key": KEY}).json()
        # the page folds white space and takes marks of Markdown for itself
        expected = letters(whole["choices"][0]["message"]["content"])
        assert expected != ""
        deadline = time.monotonic() + TIMEOUT_S
        while letters(shown.inner_text()) != expected:
            assert time.monotonic() < deadline, f"deep-chat shows {shown.inner_text()!r}"
            page.wait_for_timeout(50)


def test_a_site_of_another_origin_gets_nothing(site: Site, page: Page, tmp_path: Path) -> None:
    with running(tmp_path, api_key=KEY, cors_origins="https://chat.example.org", any_model_name=True) as server:
        site.show(block(), server)
        page.goto(site.url)
        shown = ask(page, QUESTION)

        # what was to become an answer is there first, and empty
        expect(shown).to_contain_text("rror", timeout=TIMEOUT_S * 1000)
        assert QUESTION not in shown.inner_text()


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
