from pathlib import Path

from tests.browser.conftest import Visits, until
from tests.server import fake_engine
from tests.server.running import running

UNAUTHORIZED = "Failed to load resource: the server responded with a status of 401"


def test_the_key_is_asked_for_when_it_is_needed_and_kept_nowhere(visits: Visits, tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame") as server:
        visit = visits(server.url)
        visit.forgiven.append(UNAUTHORIZED)
        page = visit.open()
        page.wait_for_selector("#access:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#prompt", "Hello")
        assert page.locator("#send").is_disabled()

        page.fill("#key", "wrong")
        page.click("text=Use the key")
        until(page, "document.querySelector('#access-problem').textContent !== ''")
        assert page.locator("#access-problem").inner_text() == "The server does not take this key."
        page.fill("#key", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#send:enabled")
        assert page.locator("#access").is_hidden()
        visit.ask("Hello")

        assert visit.answer != ""
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert "sesame" not in kept
        assert page.input_value("#key") == ""
        page.reload()
        page.wait_for_selector("#access:not([hidden])")


def test_who_has_no_key_yet_is_not_refused_again_and_again(visits: Visits, tmp_path: Path) -> None:
    with running(tmp_path, api_key="sesame") as server:
        visit = visits(server.url)
        visit.forgiven.append(UNAUTHORIZED)
        paths: list[str] = []
        visit.page.on("response", lambda response: paths.append(response.url.removeprefix(server.url)))
        visit.page.clock.install()
        page = visit.open()
        page.wait_for_selector("#access:not([hidden])")
        for count in (2, 3):
            page.clock.run_for(11_000)
            page.wait_for_timeout(300)
            assert paths.count("/health") == count

        assert paths.count("/v1/models") == 1


def test_without_a_key_nothing_is_asked_for(visits: Visits, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        page = visits(server.url).open()
        until(page, "document.querySelector('#model').textContent === 'tiny'")

        assert page.locator("#access").is_hidden()
        assert page.locator("#context").inner_text() == "400 tokens of context"


def test_the_page_is_there_while_the_model_loads_and_notices_when_it_has(visits: Visits, tmp_path: Path) -> None:
    with running(tmp_path, wait=False, heads=fake_engine.SLOW) as server:
        visit = visits(server.url)
        page = visit.open(ready=False)
        page.fill("#prompt", "Hello")
        page.wait_for_selector("#health[data-state=ready]")
        page.wait_for_selector("#send:enabled")
        until(page, "document.querySelector('#context').textContent === '400 tokens of context'")
        visit.ask("Hello")

        assert visit.answer != ""


def test_why_it_is_not_ready_is_told(visits: Visits, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    with running(tmp_path, wait=False, heads=f"{fake_engine.HANGS_IF}{there}") as server:
        page = visits(server.url).open(ready=False)
        until(page, "document.querySelector('#health').textContent.includes('fake model')")
        page.fill("#prompt", "Hello")

        assert page.locator("#health").inner_text() == "loading 50 %: loading the fake model"
        assert page.locator("#send").is_disabled()


def test_a_server_that_is_gone_is_told_and_found_again(visits: Visits, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        visit = visits(server.url)
        visit.forgiven.append("Failed to load resource: net::ERR_CONNECTION_REFUSED")
        page = visit.open()
        until(page, "document.querySelector('#model').textContent === 'tiny'")
        page.fill("#prompt", "Hello")
    page.click("#send")
    page.wait_for_selector("#health[data-state=gone]")

    assert page.locator(".problem").inner_text() == "the server does not answer"
    assert page.locator("#send").is_disabled()
    with running(tmp_path, port=int(server.url.rpartition(":")[2])):
        page.wait_for_selector("#health[data-state=ready]")
        page.click("text=Regenerate")
        until(page, "document.querySelector('.actions .primary:enabled') !== null")

        assert visit.answer != ""
