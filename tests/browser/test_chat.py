import json

import pytest
from playwright.sync_api import Route

from tests.browser.conftest import Visit, Visits, until
from tests.server import fake_engine
from tests.server.running import Running

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>&amp;"
QUESTION = "What does textwrap.dedent do?"


def test_an_answer_grows_on_the_page_and_is_read_out_once(demo: Visit) -> None:
    demo.page.evaluate(
        """() => {
          globalThis.lengths = [];
          globalThis.said = [];
          new MutationObserver(() => lengths.push(document.querySelector('.text')?.textContent.length ?? 0))
            .observe(document.querySelector('#messages'), { subtree: true, childList: true });
          new MutationObserver(() => said.push(document.querySelector('#announcer').textContent))
            .observe(document.querySelector('#announcer'), { subtree: true, childList: true });
        }"""
    )
    demo.ask(QUESTION)
    lengths, said = demo.page.evaluate("[lengths, said]")

    assert len(set(lengths)) > 3
    assert lengths == sorted(lengths)
    assert said[0] == "Answering."
    assert len(said) == 2
    assert said[1].startswith(demo.answer.strip()[:40])
    assert "tokens per step" in said[1]


def test_what_was_said_before_is_part_of_the_next_question(fake: Visit) -> None:
    fake.ask("Hello", system="Be brief", temperature="0.5", seed="7", top_k="3")
    first = fake.answer
    fake.page.fill("#prompt", "again")
    fake.page.keyboard.press("Enter")
    fake.page.wait_for_selector(".exchange:nth-child(2) .actions button")

    assert fake.asked[1]["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "again"},
    ]
    sampling = {"temperature": 0.5, "seed": 7, "top_k": 3, "max_tokens": 256}
    assert fake.asked[1].items() >= sampling.items()
    assert "min_p" not in fake.asked[1]
    assert fake.asked[1]["speculation"] == {"mode": "auto", "detail": True}
    assert fake.page.input_value("#prompt") == ""


def test_a_running_answer_can_be_stopped_and_the_next_one_asked_for(fake: Visit, fake_server: Running) -> None:
    fake.begin("Hello", seed=str(fake_engine.ENDLESS))
    until(fake.page, "document.querySelector('.text')?.textContent.length > 5")
    fake.page.click("#stop")
    fake.page.wait_for_selector("#send:not([hidden])")
    fake_server.wait_for("medusa_num_requests_running", 0)
    stopped = fake.answer

    assert fake.said == "Stopped."
    assert fake.page.locator(".state").inner_text() == "Stopped."
    assert len(stopped) > 5
    assert fake.page.locator(".actions button").all_text_contents() == ["Regenerate", "Edit the question"]
    fake.ask("Hello", seed="1")
    assert fake.asked[-1]["messages"][1] == {"role": "assistant", "content": stopped}


def test_a_new_conversation_ends_the_answer_that_still_comes(fake: Visit, fake_server: Running) -> None:
    fake.begin("Hello", seed=str(fake_engine.ENDLESS))
    until(fake.page, "document.querySelector('.text')?.textContent.length > 5")
    fake.page.click("#new")
    fake.page.wait_for_selector("#send:not([hidden])")
    fake_server.wait_for("medusa_num_requests_running", 0)

    assert fake.page.locator(".exchange").count() == 0
    assert fake.page.locator("#inspector").is_hidden()


def test_the_escape_key_stops_too(fake: Visit) -> None:
    fake.begin("Hello", seed=str(fake_engine.ENDLESS))
    fake.page.keyboard.press("Escape")
    fake.page.wait_for_selector("#send:not([hidden])")

    assert fake.said == "Stopped."


def test_an_answer_is_generated_anew_with_another_seed(fake: Visit) -> None:
    fake.ask("Hello")
    fake.page.click("text=Regenerate")
    until(fake.page, "document.querySelectorAll('.actions button:enabled').length === 3")
    first, again = fake.asked

    assert again["messages"] == first["messages"]
    assert again["seed"] != first["seed"]
    assert fake.page.locator(".answer").count() == 1


def test_the_last_question_can_be_changed(fake: Visit) -> None:
    fake.ask("Hello")
    fake.ask("wrold")
    fake.page.locator("text=Edit the question").last.click()

    assert fake.page.input_value("#prompt") == "wrold"
    assert fake.page.locator(".exchange").count() == 1
    fake.ask("world")
    assert [message["content"] for message in fake.asked[-1]["messages"] if message["role"] == "user"] == [
        "Hello",
        "world",
    ]


def test_a_new_conversation_knows_nothing_of_the_old_one(fake: Visit) -> None:
    fake.ask("Hello")
    fake.page.click("#new")
    assert fake.page.locator(".exchange").count() == 0
    assert fake.page.locator("#intro").is_visible()
    fake.ask("world")

    assert fake.asked[-1]["messages"] == [{"role": "user", "content": "world"}]


def test_a_text_is_continued_and_the_continuation_too(fake: Visit) -> None:
    fake.page.check("[name=kind][value=completion]")
    fake.ask("def read():\n")

    assert fake.asked[0]["prompt"] == "def read():\n"
    assert "messages" not in fake.asked[0]
    assert fake.answer.startswith("def read():\n")
    whole = fake.answer
    fake.page.click("text=Continue from here")
    assert fake.page.input_value("#prompt") == whole
    fake.page.keyboard.press("Control+Enter")
    fake.page.wait_for_selector(".exchange:nth-child(2) .actions button")
    assert fake.asked[1]["prompt"] == whole


def test_text_that_looks_like_markup_stays_text(fake: Visit) -> None:
    fake.ask(HTML)
    fake.page.uncheck("[name=colours]")
    plain = fake.answer
    fake.page.check("[name=colours]")

    assert HTML in plain and HTML in fake.answer
    assert fake.page.locator(".question .prose").inner_text() == HTML
    assert fake.page.locator("#messages img, #messages script").count() == 0


@pytest.mark.parametrize("seed", [fake_engine.REFUSE, fake_engine.FAIL])
def test_an_error_is_shown_before_and_within_an_answer(fake: Visit, seed: int) -> None:
    fake.forgiven.append("Failed to load resource: the server responded with a status of 400")
    fake.ask("Hello", seed=str(seed))
    problem = fake.page.locator(".problem")

    assert problem.is_visible()
    assert problem.get_attribute("role") == "alert"
    expected = "the engine does not like this seed" if seed == fake_engine.REFUSE else "fail"
    assert expected in problem.inner_text()
    fake.ask("Hello", seed="1")
    assert fake.page.locator(".exchange:last-child .problem").is_hidden()


def test_an_option_out_of_range_is_not_sent(fake: Visit) -> None:
    fake.begin("Hello", temperature="3")

    assert fake.page.evaluate("document.querySelector('[name=temperature]').validity.rangeOverflow")
    assert fake.asked == []


def test_an_option_that_cannot_be_sent_is_shown_wherever_it_is_folded_away(fake: Visit) -> None:
    fake.page.evaluate("document.querySelector('[name=top_k]').value = -1")
    fake.page.click("#settings-toggle")
    assert fake.page.locator("#settings").is_hidden()
    fake.begin("Hello")

    assert fake.page.evaluate("document.activeElement.name") == "top_k"
    assert fake.page.locator("[name=top_k]").is_visible()
    assert fake.asked == []


def test_an_option_may_lie_between_two_steps_of_its_arrows(fake: Visit) -> None:
    fake.ask("Hello", temperature="0.75", top_p="0.97", min_p="0.005", repetition_penalty="1.05")
    wanted = {"temperature": 0.75, "top_p": 0.97, "min_p": 0.005, "repetition_penalty": 1.05}

    assert fake.asked[0].items() >= wanted.items()


def test_an_answer_says_that_it_is_waited_for_and_that_a_limit_ended_it(fake: Visit) -> None:
    held: list[Route] = []
    fake.page.route("**/v1/chat/completions", lambda route: held.append(route))
    fake.begin("Hello", max_tokens="4")
    state = fake.page.locator(".state")

    assert state.inner_text() == "Waiting for the first token …"
    held[0].continue_()
    fake.page.wait_for_selector("#send:not([hidden])")
    assert "The limit ended this answer" in state.inner_text()


def test_a_stopped_comparison_gives_back_the_answer_that_was_there(fake: Visit) -> None:
    fake.ask("Hello", seed=str(fake_engine.ENDLESS), max_tokens="200")
    before = fake.answer
    fake.page.click("text=Compare with speculation off")
    assert fake.page.locator(".answer h3").first.inner_text() == "Speculation on"
    fake.page.keyboard.press("Escape")
    fake.page.wait_for_selector("#send:not([hidden])")

    assert fake.page.locator(".answer h3").all_inner_texts() == ["Answer"]
    assert fake.answer == before
    assert fake.page.locator(".verdict").count() == 0


def test_a_server_that_tells_nothing_of_its_steps_is_good_enough(visits: Visits, fake_server: Running) -> None:
    visit = visits(fake_server.url)
    deltas = ["See:\n```python\n", "print('<b>')\n", "```\nThat is 1 < 2, né?"]
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"completion_tokens": 12}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    visit.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.open()
    visit.ask("Hello")

    assert visit.page.locator(".tokens").is_hidden()
    assert visit.page.locator(".chart").is_hidden()
    assert visit.page.locator("pre code").inner_text() == "print('<b>')"
    assert visit.page.locator(".plain .prose").all_inner_texts() == ["See:", "That is 1 < 2, né?"]
    assert "12" in visit.page.locator(".totals").inner_text()
