"""Pictures of training and of speed: values in, a figure out.

Drawn through matplotlib's objects alone, so that nothing global is touched and no display is needed. matplotlib comes
with the extra for training and is imported when the first picture is drawn.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medusa_core.calibration import Calibration, Paths
from medusa_core.errors import CheckpointError, ConfigurationError

__all__ = [
    "BenchPoint",
    "accuracy_by_rank",
    "loss_curves",
    "need_matplotlib",
    "prepare_folder",
    "save",
    "speed_bars",
    "speed_by_nodes",
    "static_tree",
    "step_latency",
]

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
INK, FAINT = "#222222", "#dddddd"
DOTS_PER_INCH = 150
SHOWN_RANKS = 10


@dataclass(frozen=True)
class BenchPoint:
    """What trees of one size brought: tokens per step with the bonus, speed by plain decoding's, time of a step."""

    nodes: int
    tokens_per_step: float
    speed_up: float
    step_ms: float


def need_matplotlib() -> None:
    """Raise ConfigurationError, before anything is measured, where pictures could not be drawn."""
    if find_spec("matplotlib") is None:
        raise ConfigurationError("pictures need matplotlib; pip install 'medusa-server[train]'")


def prepare_folder(folder: Path) -> None:
    """Make a folder for pictures, before anything is measured; raises ConfigurationError where none can be drawn."""
    need_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG or SVG, as the name says; the file is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=DOTS_PER_INCH)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another folder") from error


def loss_curves(
    trained: Mapping[int, Sequence[float]], held_out: Mapping[int, Sequence[float]], title: str = "Loss of each head"
) -> Any:
    """Nats per token of each of K heads over the steps of training.

    trained:  step -> one value per head, [K], as measured on the batch of that step.
    held_out: the same on text that was never trained on.
    """
    figure, axes = _canvas(title, "training step", "loss in nats per token")
    steps = sorted(trained)
    marked = sorted(held_out)
    heads = len(next(iter([*trained.values(), *held_out.values()]), ()))
    for head in range(heads):
        colour = COLOURS[head % len(COLOURS)]
        # the last value stands in the legend: beside the points those of late heads would cover each other
        last = f", held out {held_out[marked[-1]][head]:.2f}" if marked else ""
        axes.plot([], [], color=colour, linewidth=1.6, label=f"head {head + 1}{last}")
        if steps:
            own = [trained[step][head] for step in steps]
            axes.plot(steps, own, color=colour, linewidth=0.6, alpha=0.25)
            axes.plot(steps, _smoothed(own), color=colour, linewidth=1.6)
        if marked:
            values = [held_out[step][head] for step in marked]
            axes.plot(marked, values, color=colour, linewidth=1.0, linestyle="--", marker="o", markersize=4)
    if steps and marked:
        axes.plot([], [], color=INK, linewidth=1.6, label="training batches")
        axes.plot([], [], color=INK, linewidth=1.0, linestyle="--", marker="o", markersize=4, label="held out")
    if heads > 0:
        axes.legend(frameon=False, ncols=2)
    return figure


def _smoothed(values: Sequence[float]) -> list[float]:
    """Averages over the steps around each one, wider for longer runs."""
    reach = len(values) // 50
    around = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in around]


def accuracy_by_rank(calibration: Calibration, title: str = "How often each guess of each head is right") -> Any:
    """Share of positions by head and rank, as a table of tinted cells with their numbers."""
    ranks = min(SHOWN_RANKS, max((len(shares) for shares in calibration.accuracies), default=0))
    shares = [[*own, *[0.0] * ranks][:ranks] for own in calibration.accuracies]
    columns = [f"{rank}." for rank in range(1, ranks + 1)]
    figure, axes = _canvas(title, "rank of the guess", "", height=1.6 + 0.55 * calibration.num_heads)
    # square roots: the first rank is worth far more than the tenth, whose differences should show all the same
    axes.imshow([[share**0.5 for share in own] for own in shares], cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for row, own in enumerate(shares):
        for column, share in enumerate(own):
            colour = "white" if share**0.5 > 0.55 else INK
            axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(ranks), columns)
    names = [f"head {head + 1}: any of {ranks} in {100 * sum(own):.0f} %" for head, own in enumerate(shares)]
    axes.set_yticks(range(len(shares)), names)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("rank of the guess; cells in percent of the positions")
    return figure


def static_tree(calibration: Calibration, paths: Paths, title: str | None = None) -> Any:
    """A static tree, the root at the left, each node labelled by its rank from 1, edges as wide as they are likely."""
    from matplotlib.colors import LinearSegmentedColormap

    nodes: list[tuple[int, ...]] = [(), *paths]
    places = _laid_out(nodes)
    expected = 1.0 + sum(calibration.probability(path) for path in paths)
    heading = f"Static tree of {len(nodes)} nodes, {expected:.2f} expected tokens per step, bonus included"
    depth = max((len(path) for path in nodes), default=0)
    leaves = max(height for _, height in places.values()) + 1
    figure, axes = _canvas(
        title if title is not None else heading, "", "", height=min(14.0, max(3.2, 1.4 + 0.19 * leaves))
    )
    tint = LinearSegmentedColormap.from_list("likely", ["#9ec9e8", COLOURS[0]])
    for path in paths:
        likely = calibration.probability(path)
        (left, low), (right, high) = places[path[:-1]], places[path]
        axes.plot([left, right], [low, high], color=tint(likely**0.5), linewidth=0.6 + 9.0 * likely, zorder=1)
    small = len(nodes) > 40
    for path in nodes:
        x, y = places[path]
        label = "root" if not path else f"{path[-1] + 1}"
        likely = calibration.probability(path)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": tint(likely**0.5), "linewidth": 1.0}
        axes.text(x, y, label, ha="center", va="center", fontsize=6.5 if small else 8.5, color=INK, bbox=box, zorder=2)
        if path and (not small or likely >= 0.03):
            share = f"{100 * likely:.0f} %"
            behind = {"boxstyle": "round,pad=0.08", "facecolor": "white", "edgecolor": "none"}
            axes.text(x + 0.06, y, share, va="center", fontsize=6.5, color="#555555", bbox=behind, zorder=2)
    axes.set_xlim(-0.2, depth + 0.35)
    axes.set_ylim(leaves - 0.3, -0.7)
    axes.set_xticks(range(depth + 1), ["root", *(f"head {head}" for head in range(1, depth + 1))])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "labels: rank of the guess; width, tint and percent: how likely the model takes the path to it", fontsize=8.5
    )
    return figure


def _laid_out(nodes: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[float, float]]:
    """Depth and height of every node: leaves in order from the top, a parent in the middle of its children."""
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = {path: [] for path in nodes}
    for path in sorted(path for path in nodes if path):
        children[path[:-1]].append(path)
    places: dict[tuple[int, ...], tuple[float, float]] = {}
    leaf = 0
    # of the paths in lexicographic order each leaf comes after those above it; parents are placed once they all are
    for path in sorted(nodes):
        if not children[path]:
            places[path] = (len(path), float(leaf))
            leaf += 1
    for path in sorted(nodes, key=len, reverse=True):
        if children[path]:
            heights = [places[child][1] for child in children[path]]
            places[path] = (len(path), (heights[0] + heights[-1]) / 2)
    return places


def speed_by_nodes(lines: Mapping[str, Sequence[BenchPoint]], model: str) -> Any:
    """Tokens per step and speed-up over plain decoding by tree nodes, one line for each kind of tree."""
    figure, (left, right) = _two_canvases(f"What trees bring, by their size: {Path(model).name}")
    for index, (name, points) in enumerate(lines.items()):
        colour = COLOURS[index]
        nodes = [point.nodes for point in points]
        _line(left, nodes, [point.tokens_per_step for point in points], name, colour)
        speeds = [point.speed_up for point in points]
        _line(right, nodes, speeds, name, colour)
        best = max(points, key=lambda point: point.speed_up)
        right.plot(best.nodes, best.speed_up, marker="o", markersize=11, fillstyle="none", color=colour)
        if index == 0:
            _note(right, best.nodes, best.speed_up, f"best: {best.speed_up:.2f}x at N = {best.nodes}", colour)
    left.set_ylabel("tokens per step, bonus included")
    right.set_ylabel("speed by that of plain decoding")
    right.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    for axes in (left, right):
        _nodes_axis(axes, sorted({point.nodes for points in lines.values() for point in points}))
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.95), high + 0.12 * (high - low))
    if len(lines) > 1:
        left.legend(frameon=False)
    return figure


def step_latency(curves: Mapping[str, Mapping[int, float]], model: str) -> Any:
    """Time of one step by tree nodes, one line for each curve of seconds, with its multiple of the plain step."""
    title = f"Time of one step, by the size of its tree: {Path(model).name}"
    figure, axes = _canvas(title, "", "milliseconds of one step; noted: by the plain step")
    for index, (name, seconds) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        nodes = sorted(seconds)
        _line(axes, nodes, [1e3 * seconds[count] for count in nodes], name, colour)
        if index == 0 and 1 in seconds:
            for count in nodes:
                over = seconds[count] / seconds[1]
                _note(axes, count, 1e3 * seconds[count], f"{over:.2f}x", colour)
    _nodes_axis(axes, sorted({count for seconds in curves.values() for count in seconds}))
    axes.set_ylim(0.0, axes.get_ylim()[1] * 1.08)
    axes.legend(frameon=False, loc="lower right")
    return figure


def speed_bars(
    sets: Mapping[str, Mapping[str, tuple[float, float, float]]], highlighted: Collection[str], title: str
) -> Any:
    """Tokens per second of several peers, one bar each, beside each other one field for each set of prompts.

    sets:        by set and peer, in the order of the bars: median, 10th and 90th percentile.
    highlighted: peers whose bars stand out.
    """
    names = list(next(iter(sets.values())))
    figure = _figure(max(2.2, 1.3 + 0.3 * len(names)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    fields = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    colours = [COLOURS[0] if name in highlighted else COLOURS[7] for name in names]
    for axes, (prompts, peers) in zip(fields, sets.items(), strict=True):
        _plain(axes)
        medians = [peers[name][0] for name in names]
        below, above = ([abs(peers[name][end] - peers[name][0]) for name in names] for end in (1, 2))
        spread = {"ecolor": INK, "elinewidth": 0.8, "capsize": 2.0}
        axes.barh(range(len(names)), medians, color=colours, height=0.7, xerr=[below, above], error_kw=spread)
        widest = max(peers[name][2] for name in names)
        for place, name in enumerate(names):
            axes.text(peers[name][2] + 0.02 * widest, place, f"{peers[name][0]:.0f}", va="center", fontsize=8.5)
        axes.set_xlim(0.0, 1.14 * widest)
        axes.set_title(prompts, loc="left", fontsize=10, color=INK)
        axes.grid(visible=False, axis="y")
    fields[0].set_yticks(range(len(names)), names)
    fields[0].invert_yaxis()
    return figure


def _line(axes: Any, nodes: Sequence[int], values: Sequence[float], name: str, colour: str) -> None:
    axes.plot(nodes, values, color=colour, linewidth=1.8, marker="o", markersize=5, label=name)


def _note(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """A value above its point, legible where lines cross it."""
    axes.annotate(
        text,
        (x, y),
        xytext=(-3, 11),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8.5,
        color=colour,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _nodes_axis(axes: Any, nodes: Sequence[int]) -> None:
    """Sizes of trees double from tick to tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes, [str(count) for count in nodes], fontsize=9 if len(nodes) < 8 else 7.5)
    axes.minorticks_off()
    axes.set_xlabel("nodes of the tree N, root included")


def _canvas(title: str, x_label: str, y_label: str, height: float = 4.6) -> tuple[Any, Any]:
    """A figure with one pair of axes."""
    figure = _figure(height)
    axes = figure.add_subplot()
    _plain(axes)
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _two_canvases(title: str) -> tuple[Any, tuple[Any, Any]]:
    """A figure with two pairs of axes beside each other."""
    figure = _figure(4.2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    pair = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for axes in pair:
        _plain(axes)
    return figure, pair


def _figure(height: float) -> Any:
    """An empty figure on a canvas of its own."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
