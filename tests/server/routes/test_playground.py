import re
from pathlib import Path

import pytest

from server.routes.playground import FOLDER
from tests.server.running import Running, running

FILES = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")


def test_the_root_is_the_page_whoever_asks(server: Running) -> None:
    for accept in ("text/html,*/*;q=0.8", "*/*", "application/json"):
        answer = server.get("/", headers={"accept": accept})

        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.text.startswith("<!doctype html>")


@pytest.mark.parametrize("name", FILES)
def test_every_file_beside_the_page_is_served_as_what_it_is(server: Running, name: str) -> None:
    answer = server.get(f"/playground/{name}")
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    assert answer.content == (FOLDER / name).read_bytes()


def test_the_page_and_its_modules_name_files_that_exist_and_no_other_address() -> None:
    named: set[str] = set()
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'(?:href=|src=|from )"(?:\./|playground/)([\w.-]+)"', text))
        # the namespace of SVG is a name, nothing is loaded from there
        assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name

    assert sorted(named) == FILES


@pytest.mark.parametrize("path", ["/", *(f"/playground/{name}" for name in FILES)])
def test_nothing_but_the_page_itself_may_run_or_be_asked(server: Running, path: str) -> None:
    headers = server.get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))

    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_the_page_holds_no_script_or_style_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")

    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page) == []


@pytest.mark.parametrize("path", ["/", "/playground/page.js"])
def test_what_a_browser_has_is_not_sent_again(server: Running, path: str) -> None:
    first = server.get(path)
    tag = first.headers["etag"]

    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = server.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert server.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_programs_that_look_for_a_server_may_ask_for_the_head_alone(server: Running) -> None:
    whole, head = server.get("/"), server.head("/")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/playground",
        "/playground/",
        "/playground/index.html",
        "/playground/none.js",
        "/playground/../app.py",
        "/playground/..%2fapp.py",
        "/playground/%2e%2e%2fapp.py",
        "/playground/..%5capp.py",
        "/playground/%2fetc%2fpasswd",
        "/playground/page.js%00",
        "/playground/page.js/",
        "/playground//page.js",
        "/playground/PAGE.JS",
    ],
)
def test_any_other_name_is_not_found(server: Running, path: str) -> None:
    answer = server.get(path)

    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_page_takes_nothing(server: Running) -> None:
    assert server.post("/", {}).status_code == 405
    assert server.post("/playground/page.js", {}).status_code == 405


def test_the_page_needs_no_key_and_its_data_do(tmp_path: Path) -> None:
    with running(tmp_path, wait=False, api_key="sesame") as server:
        assert [server.get(path).status_code for path in ("/", "/playground/page.js", "/health")] == [200, 200, 200]
        assert [server.get(path).status_code for path in ("/v1/models", "/index.html")] == [401, 401]


def test_an_operator_may_serve_no_page(tmp_path: Path) -> None:
    with running(tmp_path, wait=False, playground=False) as server:
        assert [server.get(path).status_code for path in ("/", "/playground/page.js")] == [404, 404]


def test_without_the_page_its_paths_need_the_key_like_any_other(tmp_path: Path) -> None:
    with running(tmp_path, wait=False, playground=False, api_key="sesame") as server:
        assert [server.get(path).status_code for path in ("/", "/playground/page.js")] == [401, 401]
