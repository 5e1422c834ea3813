import json
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import Answer, EnginePeer
from medusa_core.evaluation.bench import BenchPlan, Contestant, bench, compare, contestants
from medusa_core.evaluation.prompts import Prompt
from medusa_core.sampling import SamplingParams
from tests.medusa_core.evaluation.cast import PROMPTS, mock_engine, saved_model, saved_prompts

QUICK = BenchPlan(nodes=(4, 8), max_tokens=10, timed_prompts=1, repeats=2)


class Scripted:
    """A peer with steps of known length, each of which gives so many tokens."""

    def __init__(self, tokens_per_step: int, step_seconds: float, first_token: int = 5) -> None:
        self._tokens, self._seconds, self._first = tokens_per_step, step_seconds, first_token

    def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
        steps = (max_tokens - 1) // self._tokens
        tokens = (self._first, *range(steps * self._tokens))
        accepted = {"heads": steps * (self._tokens - 1)}
        return Answer(tokens, steps * self._seconds, (self._seconds,) * steps, accepted)


def test_speed_overhead_and_their_identity_follow_from_the_steps() -> None:
    peers = [
        Contestant("plain", "plain", 1, Scripted(1, 0.010)),
        Contestant("dynamic N=8", "dynamic", 8, Scripted(3, 0.015)),
        Contestant("transformers.generate", "transformers", None, Scripted(1, 0.020)),
    ]
    report = compare(mock_engine(), peers, PROMPTS, QUICK)

    plain, tree, theirs = report.peers
    assert (tree.tokens_per_step, tree.acceptance_length) == (3.0, 2.0)  # bonus included, bonus excluded
    assert tree.overhead == pytest.approx(1.5)
    assert (tree.over_plain, tree.over_generate) == (pytest.approx(2.0), pytest.approx(4.0))
    assert tree.identity == pytest.approx(1.0)
    assert tree.tokens_per_second.median == pytest.approx(200.0)
    assert (plain.overhead, theirs.over_plain) == (1.0, pytest.approx(0.5))
    assert report.prompts == {"chat": 1, "text": 2}
    assert report.timed_prompts == 2  # one of each kind


def test_answers_that_take_no_step_cannot_be_timed() -> None:
    peers = [Contestant("plain", "plain", 1, Scripted(3, 0.010))]

    with pytest.raises(ConfigurationError, match="every timed answer of plain ends with its first token"):
        compare(mock_engine(), peers, PROMPTS, replace(QUICK, max_tokens=2))


def test_time_that_no_step_accounts_for_shows_in_the_identity() -> None:
    class Dawdling(Scripted):
        def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
            found = super().answer(prompt, sampling, max_tokens)
            return Answer(found.tokens, 2 * found.seconds, found.step_seconds, found.accepted)

    peers = [
        Contestant("plain", "plain", 1, Scripted(1, 0.010)),
        Contestant("dynamic N=8", "dynamic", 8, Dawdling(3, 0.015)),
    ]

    assert compare(mock_engine(), peers, PROMPTS, QUICK).peers[1].identity == pytest.approx(2.0)


def test_answers_that_differ_from_the_first_peers_are_counted() -> None:
    peers = [
        Contestant("plain", "plain", 1, Scripted(1, 0.01)),
        Contestant("dynamic N=8", "dynamic", 8, Scripted(1, 0.01, first_token=6)),
    ]
    report = compare(mock_engine(), peers, PROMPTS, QUICK)

    assert [result.differing for result in report.peers] == [0, 3]
    assert report.document()["answers_differing"] == {"dynamic N=8": 3}


def test_peers_take_turns_prompt_by_prompt() -> None:
    order: list[str] = []

    class Noting(Scripted):
        def __init__(self, name: str) -> None:
            super().__init__(1, 0.01)
            self._name = name

        def answer(self, prompt: Prompt, sampling: SamplingParams, max_tokens: int) -> Answer:
            order.append(f"{self._name}{prompt.line}")
            return super().answer(prompt, sampling, max_tokens)

    peers = [Contestant(name, "dynamic", 4, Noting(name)) for name in "ab"]
    compare(mock_engine(), peers, PROMPTS, BenchPlan(timed_prompts=1, repeats=1, max_tokens=4))

    assert order == ["a1", "b1", "a2", "b2", "a4", "b4", "a1", "b1", "a2", "b2"]


def test_static_trees_run_where_the_heads_are_calibrated_only() -> None:
    assert [peer.name for peer in contestants(mock_engine(), QUICK)] == ["plain", "dynamic N=4", "dynamic N=8"]


def test_without_heads_dynamic_trees_run_all_the_same() -> None:
    engine = mock_engine(has_heads=False)

    assert [peer.name for peer in contestants(engine, QUICK)] == ["plain", "dynamic N=4", "dynamic N=8"]


def test_a_sampled_comparison_draws_the_same_tokens_with_every_tree() -> None:
    engine = mock_engine()
    peers = [
        Contestant("plain", "plain", 1, EnginePeer(engine, SpeculationParams(mode="off"))),
        Contestant("dynamic N=8", "dynamic", 8, EnginePeer(engine, SpeculationParams("tree", 8))),
    ]

    report = compare(engine, peers, PROMPTS, BenchPlan(temperature=1.0, seed=3, max_tokens=10, repeats=1))

    assert [result.differing for result in report.peers] == [0, 0]


def test_a_model_on_disk_is_compared_and_its_report_and_pictures_are_written(tmp_path: Path) -> None:
    folder, prompts, out = saved_model(tmp_path / "model"), saved_prompts(tmp_path), tmp_path / "report"
    plan = BenchPlan(nodes=(4, 8), max_tokens=8, timed_prompts=1, repeats=1, with_generate=True, limit=1)

    report = bench(EngineConfig(model=str(folder), num_threads=1), prompts, plan, out=out)

    names = ["transformers.generate", "plain", "static N=4", "static N=8", "dynamic N=4", "dynamic N=8"]
    assert [result.peer for result in report.peers] == names
    assert report.document()["answers_differing"] == {}
    assert report.prompts == {"chat": 1, "text": 1}
    assert json.loads((out / "bench.json").read_text())["peers"][2]["peer"] == "static N=4"
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "latency.png", "speed.png"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"max_tokens": 1}, "at least 2"),
        ({"repeats": 0}, "repeats is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"nodes": (1, 4)}, "trees have 2 nodes at least"),
        ({"with_generate": True, "temperature": 1.0}, "greedily"),
    ],
)
def test_a_plan_without_sense_is_refused(wrong: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        BenchPlan(**wrong)  # type: ignore[arg-type]
