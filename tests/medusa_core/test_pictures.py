import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medusa_core.calibration import Calibration
from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.pictures import (
    BenchPoint,
    accuracy_by_rank,
    loss_curves,
    prepare_folder,
    save,
    speed_bars,
    speed_by_nodes,
    static_tree,
    step_latency,
)

CALIBRATION = Calibration(((0.61, 0.123), (0.4, 0.1)), (100, 99), (1.0, 1.0))
POINTS = [BenchPoint(1, 1.0, 1.0, 2.0), BenchPoint(8, 2.3, 1.75, 3.0), BenchPoint(16, 2.5, 1.5, 4.0)]
BARS = {"held-out": {"tree": (210.0, 190.0, 240.0), "other": (90.0, 80.0, 95.0)}}
FIGURES = {
    "bars": lambda: speed_bars(BARS, {"tree"}, "Tokens per second"),
    "accuracy": lambda: accuracy_by_rank(CALIBRATION),
    "latency": lambda: step_latency({"here": {1: 0.002, 8: 0.003}}, "tiny"),
    "loss": lambda: loss_curves({1: [3.0, 4.0], 2: [2.0, 3.0]}, {2: [2.5, 3.5]}),
    "speed": lambda: speed_by_nodes({"dynamic tree": POINTS, "static tree": POINTS[:2]}, "tiny"),
    "tree": lambda: static_tree(CALIBRATION, CALIBRATION.best_tree(6)),
    "root": lambda: static_tree(CALIBRATION, ()),
}


def words(figure: Any) -> str:
    """Everything that is written on a figure."""
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_a_png_that_is_legible_at_800_pixels(tmp_path: Path, name: str) -> None:
    save(FIGURES[name](), tmp_path / "picture.png")

    content = (tmp_path / "picture.png").read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert content.startswith(b"\x89PNG")
    assert 800 <= width <= 1600 and 300 <= height <= 2200
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_bars_are_named_and_tell_their_medians() -> None:
    written = words(FIGURES["bars"]())

    assert all(word in written for word in ("tree", "other", "held-out", "210", "90"))


def test_a_picture_may_be_drawn_in_lines(tmp_path: Path) -> None:
    save(FIGURES["tree"](), tmp_path / "tree.svg")

    assert "<svg" in (tmp_path / "tree.svg").read_text(encoding="utf-8")


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tree.png").mkdir()

    with pytest.raises(CheckpointError, match="cannot write"):
        save(FIGURES["tree"](), tmp_path / "tree.png")
    assert [path.name for path in tmp_path.iterdir()] == ["tree.png"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match="cannot make the folder"):
        prepare_folder(tmp_path / "file" / "pictures")


def test_accuracies_stand_in_their_cells_in_percent() -> None:
    shown = words(FIGURES["accuracy"]())

    assert all(part in shown for part in ("61.0", "12.3", "40.0", "head 2: any of 2 in 50 %", "percent"))


def test_losses_name_their_heads_and_the_last_held_out_value() -> None:
    shown = words(FIGURES["loss"]())

    assert all(part in shown for part in ("head 1", "head 2", "held out", "3.50", "nats per token", "training step"))


def test_without_a_held_out_part_or_any_step_there_is_still_a_picture(tmp_path: Path) -> None:
    for trained, held_out in (({}, {}), ({1: [1.0]}, {}), ({}, {1: [1.0]})):
        save(loss_curves(trained, held_out), tmp_path / "loss.png")


def test_the_best_speed_is_marked_with_its_size() -> None:
    shown = words(FIGURES["speed"]())

    assert all(part in shown for part in ("best: 1.75x at N = 8", "tokens per step, bonus included", "static tree"))


def test_step_times_tell_how_much_more_than_a_plain_step_they_are() -> None:
    assert "1.50x" in words(FIGURES["latency"]())


def test_a_tree_says_what_it_is_worth_and_labels_its_nodes_by_rank() -> None:
    shown = words(static_tree(CALIBRATION, ((0,), (1,), (0, 0))))

    assert "Static tree of 4 nodes, 1.98 expected tokens per step, bonus included" in shown  # 1 + .61 + .123 + .61 x .4
    assert all(part in shown for part in ("root", "| 2 |", "61 %", "24 %", "head 2"))


def test_without_matplotlib_the_extra_is_named_before_anything_is_drawn() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from medusa_core.errors import ConfigurationError; from medusa_core.pictures import need_matplotlib\n"
        "try: need_matplotlib()\n"
        "except ConfigurationError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert shown == "pictures need matplotlib; pip install 'medusa-server[train]'\n"


def test_drawing_touches_no_global_state_of_matplotlib() -> None:
    code = (
        "import sys; from medusa_core.pictures import step_latency, save; from pathlib import Path\n"
        "assert 'matplotlib' not in sys.modules\n"
        "step_latency({'here': {1: 0.002}}, 'tiny'); print('matplotlib.pyplot' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert shown == "False\n"
