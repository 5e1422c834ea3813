from prometheus_client.parser import text_string_to_metric_families

from server.merged_metrics import merged_metrics
from server.metrics import Metrics


def exposition(waiting: int, refused: int) -> str:
    metrics = Metrics("tiny", 4)
    metrics.waiting.set(waiting)
    metrics.queue_time.observe(0.2)
    for _ in range(refused):
        metrics.count_rejected("queue_full")
    return metrics.expose().decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def test_the_samples_of_all_replicas_stand_side_by_side() -> None:
    texts = {"0": exposition(2, refused=1), "1": exposition(3, refused=0)}

    merged = samples(merged_metrics(texts).decode())

    expected = {}
    for replica, text in texts.items():
        for (name, labels), value in samples(text).items():
            expected[name, labels | {("replica", replica)}] = value
    assert merged.keys() == expected.keys()
    assert all(merged[key] == expected[key] for key in expected if not key[0].startswith(("process_", "python_")))
    waiting = [merged["medusa_num_requests_waiting", frozenset({("model_name", "tiny"), ("replica", r)})] for r in "01"]
    assert waiting == [2, 3]


def test_each_family_is_described_once() -> None:
    lines = merged_metrics({name: exposition(0, refused=0) for name in ("0", "1")}).decode().splitlines()

    described = [line for line in lines if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    assert "# TYPE medusa_requests_rejected_total counter" in described
    assert "# TYPE medusa_request_queue_time_seconds histogram" in described
