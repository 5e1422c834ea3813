import pytest

from tests.browser.conftest import Visit, Visits, until
from tests.server import fake_engine

QUESTION = "What does json.dumps do?"
PHONE = {"width": 360, "height": 740}

# Contrast of every text with what is behind it, as WCAG 2 defines it; switched off controls need none.
FAINT_TEXTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const grounds = (node) =>
    node === null ? [] : [...grounds(node.parentElement), getComputedStyle(node).backgroundColor];
  const found = [];
  for (const node of document.body.querySelectorAll('*')) {
    const text = [...node.childNodes].filter((it) => it.nodeType === 3).map((it) => it.data).join('').trim();
    if (text === '' || !node.checkVisibility() || node.closest('.unseen, :disabled, .skip, noscript, option')) continue;
    const style = getComputedStyle(node);
    const rect = node.closest('g')?.querySelector('rect');
    const behind = [...grounds(node), ...(rect ? [getComputedStyle(rect).fill] : [])];
    const [one, other] = [luminance(over(behind)), luminance(over([...behind, rect ? style.fill : style.color]))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(visits: Visits, demo_url: str, scheme: str) -> None:
    visit = visits(demo_url, color_scheme=scheme)
    page = visit.open()
    assert page.evaluate(FAINT_TEXTS) == []
    visit.ask(QUESTION, max_tokens="40")
    page.locator(".token").nth(5).click()
    page.click("text=Compare with speculation off")
    page.locator(".verdict p").last.wait_for()

    assert page.evaluate(FAINT_TEXTS) == []


def test_the_page_follows_the_system_until_somebody_chooses(visits: Visits, fake_url: str) -> None:
    page = visits(fake_url, color_scheme="dark").open()

    def is_dark() -> bool:
        red: bool = page.evaluate("getComputedStyle(document.documentElement).color.match(/\\d+/)[0] > 128")
        return red

    assert is_dark()
    page.select_option("#theme", "light")
    assert not is_dark()
    page.reload()
    assert not is_dark()
    page.select_option("#theme", "auto")
    assert is_dark()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visits: Visits, demo_url: str) -> None:
    visit = visits(demo_url, viewport=PHONE, has_touch=True, is_mobile=True)
    page = visit.open()
    assert page.locator("#settings").is_hidden()
    assert visit.has_no_horizontal_scroll()
    page.click("#settings-toggle")
    assert page.locator("#settings").is_visible()
    assert visit.has_no_horizontal_scroll()
    visit.ask(QUESTION, max_tokens="60")
    page.click("#settings-toggle")
    # no tree covers the text before somebody asks for one
    assert page.locator("#inspector").is_hidden()
    page.locator(".token").nth(6).tap()
    assert page.locator("#inspector svg").is_visible()
    assert visit.has_no_horizontal_scroll()
    page.click("#inspector-close")
    page.click("text=Compare with speculation off")
    page.locator(".verdict p").last.wait_for()
    assert visit.has_no_horizontal_scroll()
    page.focus("#prompt")
    page.keyboard.type("one")
    page.keyboard.press("Enter")
    assert page.input_value("#prompt") == "one\n"


def test_a_long_word_does_not_push_the_page_apart(visits: Visits, fake_url: str) -> None:
    visit = visits(fake_url, viewport=PHONE)
    visit.open()
    visit.ask("a" * 150)

    assert visit.has_no_horizontal_scroll()


def test_neither_does_a_long_line_of_code_with_colours_or_without(fake: Visit) -> None:
    fake.ask("```\n" + "a" * 150)
    assert fake.has_no_horizontal_scroll()
    fake.page.uncheck("[name=colours]")
    assert fake.has_no_horizontal_scroll()


def test_two_answers_take_the_room_of_the_trees(fake: Visit) -> None:
    fake.ask("Hello")
    fake.page.click("text=Compare with speculation off")
    fake.page.locator(".verdict p").last.wait_for()
    widths = fake.page.locator(".answer").evaluate_all("(all) => all.map((it) => it.clientWidth)")

    assert len(widths) == 2 and min(widths) > 400


def test_the_end_of_an_answer_stays_in_sight_until_the_reader_scrolls_up(fake: Visit) -> None:
    page = fake.page
    to_the_end = "document.documentElement.scrollHeight - scrollY - innerHeight"
    # the model repeats the question, ten lines of it in each of its steps
    fake.begin("\n" * 40, seed=str(fake_engine.ENDLESS), max_tokens="300")
    until(page, f"scrollY > 400 && {to_the_end} < 300")
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(200)
    at, length = page.evaluate("[scrollY, document.documentElement.scrollHeight]")
    until(page, f"document.documentElement.scrollHeight > {length + 200}")
    assert page.evaluate("scrollY") == at
    page.wait_for_selector("#send:not([hidden])")
    assert page.evaluate("scrollY") == at
    fake.ask("Hello", seed="1")
    assert page.evaluate(to_the_end) < 2


def test_everything_can_be_done_with_the_keyboard_alone(demo: Visit) -> None:
    page = demo.page

    def focused() -> str:
        found: str = page.evaluate("`${document.activeElement.id} ${document.activeElement.className}`")
        return found

    def tab_to(wanted: str, key: str = "Tab") -> None:
        for _ in range(60):
            page.keyboard.press(key)
            if wanted in focused().split():
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"the focus on {wanted} is not seen"
                return
        raise AssertionError(f"no {wanted} is reached with {key}")

    page.keyboard.press("Tab")
    assert "skip" in focused()
    page.keyboard.press("Enter")
    tab_to("prompt")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([hidden])")
    tab_to("chart", "Shift+Tab")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#inspector-title").inner_text() == "Step 2"
    tab_to("token", "Shift+Tab")
    assert page.locator("#tip").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.tokens .token')].indexOf(document.activeElement)") == 2
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("Enter")
    assert page.locator("#inspector-title").inner_text().startswith("Step")
    tab_to("primary")
    page.keyboard.press("Enter")
    page.locator(".verdict p").last.wait_for()


def test_the_focus_is_not_lost_with_the_button_that_had_it(fake: Visit) -> None:
    page = fake.page
    page.evaluate("globalThis.focused = []; addEventListener('focusin', (it) => focused.push(it.target.id))")
    page.fill("#prompt", "Hello")
    for button in ("#send", "text=Regenerate", "text=Compare with speculation off"):
        page.focus(button)
        page.keyboard.press("Enter")
        until(page, "document.activeElement.id === 'prompt'")
        assert page.evaluate("focused.slice(-2)") == ["stop", "prompt"]
    page.focus(".chart")
    assert page.locator("#inspector").is_hidden()
    page.keyboard.press("End")
    assert fake.said == page.locator("#inspector-words").inner_text()
    page.focus("#inspector-close")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className") == "chart"


def test_the_escape_key_takes_the_words_of_a_token_away(fake: Visit) -> None:
    fake.ask("Hello")
    fake.page.locator(".token").first.hover()
    assert fake.page.locator("#tip").is_visible()
    fake.page.keyboard.press("Escape")

    assert fake.page.locator("#tip").is_hidden()


def test_every_control_has_a_name(demo: Visit) -> None:
    demo.ask(QUESTION, max_tokens="8")
    nameless = demo.page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, [role], aside, section')]
          .filter((it) => !['status', 'alert', 'tooltip'].includes(it.role))
          .filter((it) => !(it.labels?.length || it.ariaLabel || it.getAttribute('aria-labelledby')
            || (it.localName === 'button' && it.textContent.trim())))
          .map((it) => it.outerHTML)"""
    )

    assert nameless == []
    assert demo.page.locator("#announcer").get_attribute("aria-live") == "polite"
    assert demo.page.evaluate("document.documentElement.lang") == "en"


def test_who_wants_no_motion_gets_none(visits: Visits, demo_url: str) -> None:
    visit = visits(demo_url, reduced_motion="reduce")
    page = visit.open()
    visit.ask(QUESTION, max_tokens="40")

    assert page.locator("#inspector").is_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('.token')).transitionDuration") == "0s"
