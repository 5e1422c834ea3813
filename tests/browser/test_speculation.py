import re

import pytest

from tests.browser.conftest import Visit

QUESTION = "What does textwrap.dedent do?"


@pytest.fixture
def answered(demo: Visit) -> Visit:
    demo.ask(QUESTION, mode="tree", max_nodes="8")
    return demo


def totals(visit: Visit) -> dict[str, float]:
    names = visit.page.locator(".exchange:last-child .answer:first-child dt").all_inner_texts()
    values = visit.page.locator(".exchange:last-child .answer:first-child dd").all_inner_texts()
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def test_the_tokens_of_a_step_are_one_run_and_the_runs_are_the_text(answered: Visit) -> None:
    runs = answered.page.locator(".tokens .run")
    found = totals(answered)
    kinds = runs.evaluate_all("(runs) => runs.map((run) => run.classList.contains('odd'))")
    tokens = answered.page.locator(".tokens .token").all_text_contents()

    # the prompt's own pass brought the first one
    assert runs.count() == found["steps"] + 1
    assert kinds == [number % 2 == 1 for number in range(len(kinds))]
    assert "".join(tokens) == answered.answer
    assert answered.said.startswith(answered.answer)
    assert found["tokens per step"] == pytest.approx((found["tokens"] - 1) / found["steps"], abs=0.01)
    assert found["tokens per step"] > 1.5
    assert found["tokens per second"] > 0


def test_the_legend_counts_every_token_and_its_lines_differ_in_more_than_colour(answered: Visit) -> None:
    counts = {
        words.split()[0]: int(words.split()[1]) for words in answered.page.locator(".legend li").all_inner_texts()
    }
    styles = answered.page.evaluate(
        """['base', 'heads', 'lookup', 'recycling', 'prediction', 'grammar'].map((source) => {
          const node = document.createElement('span');
          node.className = `token source-${source}`;
          document.body.append(node);
          const { textDecorationStyle, textDecorationThickness } = getComputedStyle(node);
          return `${textDecorationStyle} ${textDecorationThickness}`;
        })"""
    )

    assert sum(counts.values()) == totals(answered)["tokens"]
    assert counts["base"] > 0 and counts["heads"] > 0
    assert len(set(styles)) == 6


def test_pointing_at_a_token_tells_where_it_comes_from(answered: Visit) -> None:
    tip = answered.page.locator("#tip")
    answered.page.locator(".tokens .token.source-heads").first.hover()
    words = tip.inner_text()

    assert re.search(r"Step \d+, token 1 of \d in [\d.]+ ms", words)
    assert re.search(r"heads: depth 1, guess \d+ of head 1", words)
    assert re.search(r"expected with (< )?\d+ %", words)
    answered.page.locator(".tokens .run").nth(2).locator(".token.source-base").hover()
    assert "the model's own next token" in tip.inner_text()
    answered.page.mouse.move(0, 0)
    assert tip.is_hidden()


def test_a_step_shows_the_tree_that_proposed_it(answered: Visit) -> None:
    run = answered.page.locator(".tokens .run").nth(4)
    run.locator(".token").first.click()
    tree = answered.page.locator("#inspector-tree")
    kept = tree.locator(".node.kept:not(.added)").count()

    assert answered.page.locator("#inspector-title").inner_text() == "Step 4"
    assert tree.locator(".node:not(.added)").count() <= 8
    # the root was known, and what was added was guessed by nobody
    assert kept - 1 + tree.locator(".node.added").count() == run.locator(".token").count()
    assert tree.locator(".edge").count() == tree.locator(".node").count() - 1
    assert re.search(r"checked \d guess", answered.page.locator("#inspector-words").inner_text())
    label = tree.locator("svg").get_attribute("aria-label")
    assert label is not None and label.startswith("Tree of ")
    assert answered.page.locator(".run.marked").count() == 1
    answered.page.click("#inspector-next")
    assert answered.page.locator("#inspector-title").inner_text() == "Step 5"
    answered.page.click("#inspector-close")
    assert answered.page.locator("#inspector").is_hidden()


def test_the_chart_has_a_square_for_every_token_and_is_a_slider_over_the_steps(answered: Visit) -> None:
    chart = answered.page.locator(".chart")
    found = totals(answered)
    chart.focus()
    answered.page.keyboard.press("End")

    assert chart.locator(".square").count() == found["tokens"]
    assert chart.get_attribute("aria-valuenow") == chart.get_attribute("aria-valuemax") == f"{found['steps']:.0f}"
    answered.page.keyboard.press("ArrowLeft")
    assert answered.page.locator("#inspector-title").inner_text() == f"Step {found['steps'] - 1:.0f}"
    assert (chart.get_attribute("aria-valuetext") or "").startswith(f"step {found['steps'] - 1:.0f}, ")


def test_the_newest_tree_is_drawn_while_the_answer_comes(demo: Visit) -> None:
    demo.page.evaluate(
        """() => {
          globalThis.titles = new Set();
          new MutationObserver(() => {
            const { textContent } = document.querySelector('#inspector-title');
            if (!document.querySelector('#stop').hidden) titles.add(textContent);
          }).observe(document.querySelector('#inspector-title'), { childList: true });
        }"""
    )
    demo.ask(QUESTION, mode="tree")

    assert len(demo.page.evaluate("[...titles]")) >= 2


def test_without_speculation_every_step_is_one_token(demo: Visit) -> None:
    demo.ask(QUESTION, mode="off", max_tokens="24")
    found = totals(demo)

    assert found["tokens per step"] == 1
    assert demo.page.locator(".run").count() == found["tokens"]


def test_an_answer_without_speculation_is_compared_the_other_way_round(demo: Visit) -> None:
    demo.ask(QUESTION, mode="off", max_tokens="24")
    demo.page.click("text=Compare with speculation on")
    demo.page.locator(".verdict p").last.wait_for()

    assert [body["speculation"]["mode"] for body in demo.asked] == ["off", "auto", "off"]
    assert demo.page.locator(".answer h3").all_inner_texts() == ["Speculation on", "Speculation off"]
    assert demo.page.locator(".verdict .same").is_visible()


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_plain_decoding_beside_it_writes_the_same_text(demo: Visit, kind: str) -> None:
    demo.page.check(f"[name=kind][value={kind}]")
    demo.ask(QUESTION if kind == "chat" else "def read_text(path):\n", temperature="0.9", max_tokens="64")
    demo.page.click("text=Compare with speculation off")
    verdict = demo.page.locator(".verdict")
    verdict.locator("p").last.wait_for()
    texts = demo.page.locator(".answer .text > :not([hidden])").all_text_contents()
    first, again, plain = demo.asked

    assert verdict.locator(".same").inner_text() == "The text is the same."
    assert re.search(r"(came [\d.]+ s (later|earlier): |took the same time, )[\d.]+ s", verdict.inner_text())
    assert texts[0] == texts[1] != ""
    # the first answer had a prompt to compute and trees to draw, so that it is not what is timed
    assert again == first
    assert plain == {**first, "speculation": {"mode": "off", "detail": True}}
    assert demo.said.startswith("The text is the same.")


def test_where_two_texts_part_it_says_how_close_the_model_was(demo: Visit) -> None:
    demo.ask(QUESTION, temperature="1.5", seed="3", acceptance="typical", mode="tree", max_tokens="96")
    demo.page.click("text=Compare with speculation off")
    verdict = demo.page.locator(".verdict")
    verdict.locator("p").last.wait_for()
    words = verdict.locator(".different").inner_text()

    assert re.search(r"The texts part behind \d+ characters", words)
    assert re.search(r"wrote “.+” and not “.+”, whose logits are [\d.e-]+ apart", words, re.DOTALL)
    assert demo.page.locator(".token.differs").count() == 2
    # the timed answers were not slowed down by log-probabilities
    assert ["logprobs" in body for body in demo.asked] == [False, False, False, True]
