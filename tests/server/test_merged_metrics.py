from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from server.merged_metrics import merged_metrics
from server.metrics import Metrics


def exposition(waiting: int, refused: int) -> str:
    metrics = Metrics("tiny", 4)
    metrics.waiting.set(waiting)
    metrics.queue_time.observe(0.2)
    for _ in range(refused):
        metrics.count_rejected("queue_full")
    return metrics.expose().decode()


def text(answer: Response) -> str:
    assert answer.status_code == 200
    return bytes(answer.body).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def test_the_samples_of_all_replicas_stand_side_by_side() -> None:
    texts = {"0": exposition(2, refused=1), "1": exposition(3, refused=0)}

    merged = samples(text(merged_metrics({name: Response(said) for name, said in texts.items()})))

    expected = {}
    for replica, said in texts.items():
        for (name, labels), value in samples(said).items():
            expected[name, labels | {("replica", replica)}] = value
    assert merged.keys() == expected.keys()
    assert all(merged[key] == expected[key] for key in expected if not key[0].startswith(("process_", "python_")))
    waiting = [merged["medusa_num_requests_waiting", frozenset({("model_name", "tiny"), ("replica", r)})] for r in "01"]
    assert waiting == [2, 3]


def test_each_family_is_described_once() -> None:
    lines = text(merged_metrics({name: Response(exposition(0, refused=0)) for name in ("0", "1")})).splitlines()

    described = [line for line in lines if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    assert "# TYPE medusa_requests_rejected_total counter" in described
    assert "# TYPE medusa_request_queue_time_seconds histogram" in described


def test_an_answer_without_metrics_is_the_answer() -> None:
    refused = Response("a key is needed", 401)

    assert merged_metrics({"0": Response(exposition(0, refused=0)), "1": refused}) is refused
    assert merged_metrics({"0": Response(exposition(0, refused=0))}).headers["content-type"] == CONTENT_TYPE_LATEST
