/** Server-sent events out of a stream that may be cut anywhere. */

/** Takes text as it arrives and gives the data of the events that are complete. */
export class EventParser {
  #rest = "";

  /**
   * @param {string} text
   * @returns {string[]}
   */
  push(text) {
    // a \r at the end may be half of a line's end
    const whole = this.#rest + text;
    const parts = whole.split(/\r?\n\r?\n/);
    this.#rest = /** @type {string} */ (parts.pop());
    return parts.map(dataOf).filter((data) => data !== null);
  }
}

/**
 * Data of an event, null of a comment, which only keeps the connection alive.
 * @param {string} event
 * @returns {string | null}
 */
function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.length === 0 ? null : lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
