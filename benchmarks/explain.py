"""The pictures of docs/how-it-works.md, drawn from real steps of the demo model.

Writes docs/pictures/answer.json, which holds the steps and how long each took, and the pictures, which are drawn from
that file alone. Everything but the times is the same on every run.

Usage: python benchmarks/explain.py [--draw-only] [--into docs/pictures]
"""

import argparse
import os
from pathlib import Path

from benchmarks.explaining import answering
from benchmarks.explaining.drawing import pictures

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


def write(path: Path, text: str) -> None:
    """A file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    """Ask, unless the answer is there already, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw-only", action="store_true", help="draw the steps that answer.json has")
    parser.add_argument("--into", type=Path, default=FOLDER, help="the folder of answer.json and the pictures")
    arguments = parser.parse_args()
    kept: Path = arguments.into / "answer.json"
    if not arguments.draw_only:
        write(kept, answering.written(answering.ask()))
    answer = answering.read(kept.read_text(encoding="utf-8"))
    for name, picture in pictures(answer).items():
        write(arguments.into / name, picture)
        print(arguments.into / name)


if __name__ == "__main__":
    main()
