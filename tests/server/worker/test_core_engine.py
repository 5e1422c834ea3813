from msgspec.structs import replace

from server.worker.core_engine import load_engine
from server.worker.messages import TokenDelta, decode_from_worker, encode
from tests.server.worker.test_process import generate
from tests.server.worker_info import LOAD


def test_the_engine_of_the_demo_model_speaks_the_messages() -> None:
    stages: list[str] = []
    engine = load_engine(
        replace(LOAD, num_threads=1, tree_nodes=8, compile=False), lambda stage, share: stages.append(stage)
    )

    deltas = list(engine.generate(replace(generate(7), max_tokens=4), lambda: False))

    assert stages[0] == "loading the model" and stages[-1] == "ready"
    assert engine.info.num_heads == 4
    assert [decode_from_worker(encode(delta)) for delta in deltas] == deltas
    assert all(isinstance(delta, TokenDelta) and delta.id == 7 for delta in deltas)
    assert sum(len(delta.tokens) for delta in deltas) == 4
    assert all(delta.step is None or delta.step.detail is None for delta in deltas)

    watched = list(engine.generate(replace(generate(7), max_tokens=4, detail=True), lambda: False))

    assert [delta.tokens for delta in watched] == [delta.tokens for delta in deltas]
    assert [decode_from_worker(encode(delta)) for delta in watched] == watched
    for delta in watched[1:]:
        assert delta.step is not None and delta.step.detail is not None
        assert len(delta.step.detail.nodes) == 1 + sum(delta.step.drafted.values())
