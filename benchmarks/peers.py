"""Our server beside transformers.generate and llama.cpp's server: the same weights, all through HTTP, streamed.

Every peer answers the same prompt ids greedily in float32 with one thread, in turn prompt by prompt, from an empty
cache, and stops where the model does. Ours: plain, the best static tree, trees of the heads alone, trees of all that
drafts, and the size that the engine chooses itself. transformers stands behind the smallest server there can be.
llama.cpp takes part once `python benchmarks/llama_cpp.py` has built it. Answers are compared with transformers'. Prints
tables for people, whose columns benchmarks/serve.py explains, and one JSON document as the last line.

Usage: python benchmarks/peers.py [--model demo] [--nodes 8] [--timed 6] [--repeats 3] [--out FILE] [--chart FILE.svg]
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.llama_cpp import built_server, version
from benchmarks.through_http.figures import GENERATE, Found
from benchmarks.through_http.running import COPY_HEAVY, HELD_OUT, finish, parser_of, run, started
from benchmarks.through_http.starting import foreign_peers, our_peers
from medusa_core.pictures import save, speed_bars


def draw(found: Sequence[Found], ours: Collection[str], path: Path) -> None:
    """Tokens per second of every peer on every set."""
    bars = {}
    for one in found:
        speeds = {figures.peer: figures.tokens_per_second for figures in one.figures}
        bars[one.name] = {peer: (speed.median, speed.p10, speed.p90) for peer, speed in speeds.items()}
    save(speed_bars(bars, ours, "Tokens per second through HTTP, one thread"), path)


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__, timed=6)
    parser.add_argument("--chart", type=Path, help="also draw the speeds, as PNG or SVG")
    options = parser.parse_args()
    model = started(options)
    built = built_server(options.work)
    llama_server = built if built.exists() else None
    if llama_server is None:
        print(f"llama.cpp takes no part: there is no {built}; python benchmarks/llama_cpp.py builds it")
    with our_peers(model, options.work) as ours, foreign_peers(model, options.work, llama_server) as others:
        found = [run(model, ours | others, chosen, options, GENERATE) for chosen in (HELD_OUT, COPY_HEAVY)]
    if options.chart is not None:
        draw(found, ours, options.chart)
    finish("peers", found, options, {"llama_cpp": version(llama_server) if llama_server is not None else None})


if __name__ == "__main__":
    main()
