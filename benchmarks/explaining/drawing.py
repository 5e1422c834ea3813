"""The pictures: a tree, its mask, steps in time, and tokens by step."""

from collections.abc import Sequence

from benchmarks.explaining.answering import Answer, Node, Step
from benchmarks.explaining.canvas import Canvas, seen

__all__ = ["pictures"]

WIDTH, MARGIN = 880.0, 24.0
COLUMN, ROW, NODE_HEIGHT = 118.0, 46.0, 26.0
# How many tokens of the answer the picture of steps in time shows.
TIMED_TOKENS = 24
SAID = {None: "the model itself", "heads": "a draft head", "lookup": "lookup: what followed the last time"}


def pictures(answer: Answer) -> dict[str, str]:
    """Every picture by the name of its file."""
    step = answer.by_tree[answer.shown]
    return {
        "tree.svg": tree(step),
        "mask.svg": mask(step),
        "steps.svg": steps(answer),
        "tokens.svg": tokens(answer),
    }


def color(source: str | None, soft: bool = False) -> str:
    """The colour of who proposed a token."""
    return f"var(--{source if source is not None else 'base'}{'-soft' if soft else ''})"


def legend(canvas: Canvas, x: float, y: float, sources: Sequence[str | None]) -> None:
    """What the colours mean, in a line."""
    for source in sources:
        canvas.box(x, y - 10, 12, 12, color(source, soft=True), color(source), radius=3)
        canvas.text(x + 18, y, SAID[source], "say small")
        x += 42 + 6.3 * len(SAID[source])


def rows_of(nodes: Sequence[Node]) -> list[float]:
    """The row of every node: leaves one below the other, a parent at the height of its first child."""
    rows = [0.0] * len(nodes)
    next_row = 0

    def place(index: int) -> float:
        nonlocal next_row
        children = [child for child, node in enumerate(nodes) if node.parent == index]
        found = [place(child) for child in children]
        if not found:
            found = [float(next_row)]
            next_row += 1
        rows[index] = found[0]
        return rows[index]

    place(0)
    return rows


def tree(step: Step) -> str:
    """Tokens of a tree from left to right, the accepted path in bold, the bonus behind it."""
    rows, top = rows_of(step.tree), 84.0
    height = top + (max(rows) + 1) * ROW + 44
    accepted = "".join(step.tokens)
    canvas = Canvas(
        WIDTH, height, "A tree of draft tokens",
        f"{len(step.tree) - 1} drafted tokens behind {step.tree[0].text!r}; accepted and decided: {accepted!r}",
    )  # fmt: skip
    kept = {0, *step.path}
    places = {
        index: (MARGIN + node.depth * COLUMN, top + rows[index] * ROW, COLUMN - 30)
        for index, node in enumerate(step.tree)
    }
    heading = ("last token", *(f"depth {depth}" for depth in range(1, 1 + max(node.depth for node in step.tree))))
    for depth, words in enumerate(heading):
        canvas.text(MARGIN + depth * COLUMN, 58, words, "say quiet small")
    title = f"One step: {len(step.tree) - 1} guesses checked at once, {len(step.tokens)} tokens written"
    canvas.text(MARGIN, 32, title, "say bold")
    for index, node in enumerate(step.tree):
        if node.parent is not None:
            join(canvas, places[node.parent], places[index], index in kept)
    last = places[step.path[-1]] if step.path else places[0]
    bonus = (last[0] + COLUMN, last[1], last[2])
    canvas.text(bonus[0], 58, "and one more" if step.tree[step.path[-1]].depth + 1 >= len(heading) else "",
                "say quiet small")  # fmt: skip
    join(canvas, last, bonus, True)
    for index, node in enumerate(step.tree):
        draw_node(canvas, places[index], node, index in kept)
    draw_node(canvas, bonus, Node(step.tokens[-1], None, 0, None, 1.0), True, dashed=True)
    legend(canvas, MARGIN, height - 18, [None, "heads", "lookup"])
    return canvas.svg()


def join(canvas: Canvas, left: tuple[float, float, float], right: tuple[float, float, float], is_kept: bool) -> None:
    """A line between two nodes, thick where the path goes."""
    x, y = left[0] + left[2], left[1] + NODE_HEIGHT / 2
    to_x, to_y = right[0], right[1] + NODE_HEIGHT / 2
    middle = (x + to_x) / 2
    points = f"M{x:.1f} {y:.1f} C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    canvas.line(points, "var(--ink)" if is_kept else "var(--line)", 3 if is_kept else 1.5)


def draw_node(
    canvas: Canvas, place: tuple[float, float, float], node: Node, is_kept: bool, dashed: bool = False
) -> None:
    """A token in its box, with how likely the drafter thought that it would be kept."""
    x, y, width = place
    canvas.box(x, y, width, NODE_HEIGHT, color(node.source, soft=True), color(node.source),
               weight=2.5 if is_kept else 1, dashed=dashed)  # fmt: skip
    canvas.text(x + width / 2, y + 17.5, seen(node.text), "bold" if is_kept else "", "middle")
    if node.source is not None:
        canvas.text(x + width / 2, y + NODE_HEIGHT + 13, f"{100 * node.probability:.0f} %", "say quiet small", "middle")


def ancestors(nodes: Sequence[Node], index: int) -> set[int]:
    """A node and all that stand before it."""
    found, at = set[int](), index
    while True:
        found.add(at)
        parent = nodes[at].parent
        if parent is None:
            return found
        at = parent


def mask(step: Step) -> str:
    """Which tokens each row of the pass may look at: the text so far, and its own way from the root."""
    nodes, cell, left, top, past = step.tree, 34.0, 150.0, 118.0, 190.0
    size = cell * len(nodes)
    height = top + size + 56
    canvas = Canvas(
        WIDTH, height, "The mask of one pass",
        "Each row of the tree attends to the whole text so far and to the tokens on its own way from the root, only.",
    )  # fmt: skip
    canvas.text(MARGIN, 32, "The mask of the same step: which tokens each row may look at", "say bold")
    canvas.box(left, top, past - 6, size, "var(--soft)", "var(--line)")
    canvas.text(left + past / 2 - 3, top + size / 2 - 4, "all of the text so far,", "say", "middle")
    canvas.text(left + past / 2 - 3, top + size / 2 + 14, "from the cache", "say", "middle")
    kept = {0, *step.path}
    for row, node in enumerate(nodes):
        y = top + row * cell
        label = "bold" if row in kept else ""
        canvas.text(left - 12, y + cell / 2 + 4, seen(node.text), label, "end")
        canvas.text(left + past + row * cell + cell / 2 + 4, top - 10, seen(node.text), label, turned=True)
        visible = ancestors(nodes, row)
        for column in range(len(nodes)):
            fill = color(nodes[column].source, soft=True) if column in visible else "var(--ground)"
            line = color(nodes[column].source) if column in visible else "var(--line)"
            canvas.box(left + past + column * cell + 1, y + 1, cell - 2, cell - 2, fill, line, 3)
        canvas.text(left + past + size + 14, y + cell / 2 + 4, f"position n + {node.depth}", "say quiet small")
    legend(canvas, MARGIN, height - 20, [None, "heads", "lookup"])
    return canvas.svg()


def steps(answer: Answer) -> str:
    """The same tokens by plain steps and by trees, as long as they took."""
    start = answer.shown - 4
    behind = sum(len(step.tokens) for step in answer.by_tree[:start])
    by_tree = steps_of(answer.by_tree[start:], TIMED_TOKENS)
    count = sum(len(step.tokens) for step in by_tree)
    lanes = (("plain", answer.plainly[behind : behind + count]), ("trees", by_tree))
    longest = max(sum(step.seconds for step in lane) for _, lane in lanes)
    left, block, gap = 78.0, 96.0, 44.0
    scale = (WIDTH - left - MARGIN) / longest
    height = 64 + 2 * (block + gap) + 8
    canvas = Canvas(
        WIDTH, height, "The same tokens, plainly and by trees",
        f"{count} tokens took {len(lanes[0][1])} plain steps or {len(by_tree)} steps with trees.",
    )  # fmt: skip
    canvas.text(MARGIN, 32, f"The same {count} tokens, step by step, each as wide as it took", "say bold")
    for lane, (name, shown) in enumerate(lanes):
        x, y = left, 56 + lane * (block + gap)
        canvas.text(MARGIN, y + block / 2 + 4, name, "say bold")
        for step in shown:
            width = step.seconds * scale
            canvas.box(x + 0.75, y, width - 1.5, block, "var(--plain-soft)", "none", 3)
            for place, (token, source) in enumerate(zip(step.tokens, step.sources, strict=True)):
                share = width / len(step.tokens)
                canvas.box(x + place * share + 2, y + 2, share - 4, block - 4, color(source, soft=True), "none", 3)
                canvas.text(x + (place + 0.5) * share + 4, y + block - 8, seen(token), turned=True)
            x += width
        total = 1e3 * sum(step.seconds for step in shown)
        canvas.text(left, y + block + 18, f"{len(shown)} steps, {total:.0f} ms", "say small quiet")
    legend(canvas, left + 130, height - 34, [None, "heads", "lookup"])
    return canvas.svg()


def steps_of(steps: Sequence[Step], count: int) -> list[Step]:
    """So many steps as bring at least this many tokens."""
    found: list[Step] = []
    for step in steps:
        if sum(len(one.tokens) for one in found) >= count:
            break
        found.append(step)
    return found


def tokens(answer: Answer) -> str:
    """How many tokens each step of the answer brought, and who proposed them."""
    left, bottom, unit = 52.0, 190.0, 22.0
    bar = (WIDTH - left - MARGIN) / len(answer.by_tree)
    mean = sum(len(step.tokens) for step in answer.by_tree) / len(answer.by_tree)
    canvas = Canvas(
        WIDTH, bottom + 56, "Tokens per step over an answer",
        f"{len(answer.by_tree)} steps, {mean:.2f} tokens per step on average",
    )  # fmt: skip
    title = f"Tokens of each step of the whole answer: {mean:.2f} on average, 1 without speculation"
    canvas.text(MARGIN, 32, title, "say bold")
    for count in range(1, 1 + max(len(step.tokens) for step in answer.by_tree)):
        y = bottom - count * unit
        canvas.line(f"M{left:.1f} {y:.1f} H{WIDTH - MARGIN:.1f}", "var(--line)", 0.75)
        canvas.text(left - 10, y + unit / 2 + 4, str(count), "say small quiet", "end")
    for place, step in enumerate(answer.by_tree):
        # what was drafted stands on the token that every step brings
        for level, source in enumerate(sorted(step.sources, key=lambda one: one is not None)):
            y = bottom - (level + 1) * unit
            canvas.box(left + place * bar + 1, y + 1, bar - 2, unit - 2, color(source, soft=True), color(source), 2)
    canvas.text(left, bottom + 16, "first step", "say small quiet")
    canvas.text(WIDTH - MARGIN, bottom + 16, f"step {len(answer.by_tree)}", "say small quiet", "end")
    legend(canvas, left, bottom + 40, [None, "heads", "lookup"])
    return canvas.svg()
