/** The end of the page kept in sight while text comes, until the reader scrolls away from it. */

// Coming down to so little above the end means to go on with it.
const NEAR_PX = 160;

export class Following {
  #isOn = true;
  #top = 0;
  #page = document.documentElement;

  constructor() {
    document.addEventListener("scroll", () => this.#look(), { passive: true });
  }

  /** From now on, wherever the reader was. */
  begin() {
    this.#isOn = true;
  }

  follow() {
    // text may come between the reader's scrolling and its event
    this.#look();
    if (!this.#isOn) return;
    this.#page.scrollTop = this.#page.scrollHeight;
    this.#top = this.#page.scrollTop;
  }

  /** Text that grows only moves the end away: it is the reader who moves up. */
  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.#page;
    const isUpwards = scrollTop < this.#top;
    // a page that shrinks moves up as well, and stays at its end
    const isNear = scrollHeight - scrollTop - clientHeight < (isUpwards ? 2 : NEAR_PX);
    this.#isOn = isNear || (this.#isOn && !isUpwards);
    this.#top = scrollTop;
  }
}
