from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics
from server.worker.messages import PromptStats, WorkerInfo

INFO = WorkerInfo("demo", "cpu", "float32", 300, 4096, [1], 4, None, 8, 3, {})


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Samples by name and the label that is not the model's."""
    found = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            other = [value for name, value in sample.labels.items() if name != "model_name"]
            found[sample.name, ",".join(other)] = sample.value
    return found


def buckets(metrics: Metrics, name: str) -> list[str]:
    return [label for found, label in samples(metrics) if found == f"{name}_bucket"]


def test_buckets_follow_the_depth_of_the_tree_and_the_context() -> None:
    metrics = Metrics("demo", 4)
    metrics.of_model(INFO)

    assert buckets(metrics, "medusa_tokens_per_step") == ["1.0", "2.0", "3.0", "4.0", "+Inf"]
    assert buckets(metrics, "medusa_acceptance_length") == ["0.0", "1.0", "2.0", "3.0", "+Inf"]
    sizes = ["1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "+Inf"]
    assert buckets(metrics, "medusa_request_prompt_tokens") == sizes


def test_a_replaced_worker_keeps_what_was_counted() -> None:
    metrics = Metrics("demo", 4)
    metrics.of_model(INFO).count_request("chat", "stop")

    assert metrics.of_model(INFO) is metrics.of_model(INFO)
    assert samples(metrics)["medusa_requests_total", "chat,stop"] == 1


def test_a_step_without_drafts_is_a_step_but_no_draft() -> None:
    metrics = Metrics("demo", 4)
    model = metrics.of_model(INFO)
    model.count_step("off", emitted=1, drafted=0, accepted=0, gap_s=0.01)
    model.count_step("tree", emitted=3, drafted=7, accepted=2, gap_s=0.03)
    found = samples(metrics)

    assert found["medusa_decode_steps_total", "off"] == 1
    assert found["medusa_decode_steps_total", "tree"] == 1
    assert found["medusa_spec_decode_num_drafts_total", ""] == 1
    assert found["medusa_inter_step_latency_seconds_count", ""] == 2
    # one observation a token, each its share of the gap
    assert found["medusa_inter_token_latency_seconds_count", ""] == 4
    assert found["medusa_inter_token_latency_seconds_bucket", "0.01"] == 4


def test_a_prompt_found_in_the_cache_is_a_hit() -> None:
    metrics = Metrics("demo", 4)
    model = metrics.of_model(INFO)
    for cached_tokens in (0, 30):
        model.count_prompt(PromptStats(40, cached_tokens, 0.1, None), 0.2)
    found = samples(metrics)

    assert found["medusa_prompt_cache_queries_total", ""] == 2
    assert found["medusa_prompt_cache_hits_total", ""] == 1
    assert found["medusa_prompt_cache_hit_tokens_total", ""] == 30
    assert found["medusa_prompt_tokens_total", ""] == 80


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics("demo", 1), Metrics("demo", 2)
    first.count_rejected("queue_full")

    assert samples(first)["medusa_requests_rejected_total", "queue_full"] == 1
    assert ("medusa_requests_rejected_total", "queue_full") not in samples(second)
    assert samples(second)["medusa_queue_capacity", ""] == 2


def test_a_worker_is_down_until_it_is_up() -> None:
    metrics = Metrics("demo", 1)

    assert samples(metrics)["medusa_worker_up", "0"] == 0
    metrics.set_worker_up(True)
    assert samples(metrics)["medusa_worker_up", "0"] == 1
