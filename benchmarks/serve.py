"""Our server as its client sees it: what every way of speculating brings, and what HTTP and two processes cost a step.

Through HTTP, streamed, float32, one thread, from an empty cache, all ways in turn prompt by prompt: plain, the best
static tree, trees of the heads alone, trees of all that drafts, the size that the engine chooses itself, and the engine
without a server. Greedily on held-out and on copy-heavy prompts, and at temperature 1 with a seed. Answers must be
those of plain decoding. Prints tables and one JSON document as the last line.

Columns: `step ms` is a step by the worker's own clock; `+http ms` what it takes at the client beside what was computed
for it; `overhead` a step by the plain step; `identity` tokens per step by overhead by speed-up, 1 where everything was
measured; `of limit` compares a step with the time in which this machine's memory delivers what a plain step reads.

Usage: python benchmarks/serve.py [--model demo] [--nodes 8] [--timed 6] [--repeats 3] [--out FILE]
"""

from benchmarks.through_http.asking import EngineAlone, StreamPeer
from benchmarks.through_http.figures import PLAIN
from benchmarks.through_http.running import COPY_HEAVY, HELD_OUT, HELD_OUT_SAMPLED, finish, parser_of, run, started
from benchmarks.through_http.starting import CONTEXT, Model, our_peers
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine


def alone(model: Model) -> dict[str, StreamPeer]:
    """The engine in this process, with the same tree as the server that merges all that drafts."""
    config = EngineConfig(
        model.name, model.heads, tree_nodes=model.nodes, max_context=CONTEXT, num_threads=1, device="cpu"
    )
    engine = Engine.load(config)
    return {f"engine alone, N={model.nodes}": EngineAlone(engine, SpeculationParams("tree"), model.codec)}


def main() -> None:
    """Run the benchmark."""
    options = parser_of(__doc__, timed=6).parse_args()
    model = started(options)
    with our_peers(model, options.work) as ours:
        peers = ours | alone(model)
        found = [run(model, peers, chosen, options, PLAIN) for chosen in (HELD_OUT, COPY_HEAVY, HELD_OUT_SAMPLED)]
    finish("serve", found, options, {})


if __name__ == "__main__":
    main()
