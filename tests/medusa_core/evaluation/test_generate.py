from pathlib import Path

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.evaluation.answers import EnginePeer
from medusa_core.evaluation.generate import GeneratePeer
from tests.cast import GREEDY
from tests.medusa_core.evaluation.cast import PROMPTS, saved_model


def test_transformers_writes_what_the_engine_writes_and_its_prefill_is_not_timed(tmp_path: Path) -> None:
    engine = Engine.load(EngineConfig(model=str(saved_model(tmp_path)), num_threads=1))
    ours, theirs = EnginePeer(engine, SpeculationParams(mode="off")), GeneratePeer.load(engine.info)

    for prompt in PROMPTS:
        own, other = (peer.answer(prompt, GREEDY, 12) for peer in (ours, theirs))
        assert own.tokens == other.tokens
        assert other.seconds > 0.0
        assert (other.step_seconds, dict(other.accepted)) == ((), {})
