import os

from prometheus_client.parser import text_string_to_metric_families

from server.errors import PROBLEMS
from server.metrics import Metrics
from server.worker.messages import PromptStats, StepStats, WorkerInfo
from tests.server.running import MODEL, Running

INFO = WorkerInfo(
    "demo", "cpu", "float32", 300, 4096, [1], 4, None, 8, 3, 0.005, {}, "dynamic", "as asked for", "none", None
)


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
    model.count_step("off", StepStats({}, [], [], 0.01, {}), emitted=1, gap_s=0.01)
    model.count_step("tree", StepStats({"heads": 7}, ["heads"] * 2, [], 0.03, {}), emitted=3, gap_s=0.03)
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
    assert samples(second)["medusa_requests_rejected_total", "queue_full"] == 0
    assert samples(second)["medusa_queue_capacity", ""] == 2


def test_a_worker_is_down_until_it_is_up() -> None:
    metrics = Metrics("demo", 1)

    assert samples(metrics)["medusa_worker_up", "0"] == 0
    metrics.set_worker_up(True)
    assert samples(metrics)["medusa_worker_up", "0"] == 1


def test_a_head_is_judged_by_what_was_delivered_only() -> None:
    metrics = Metrics("demo", 1)
    step = StepStats({"heads": 7}, ["heads", "heads"], [True, False, True], 0.01, {"verify": 0.004, "draft": 0.001})
    metrics.of_model(INFO).count_step("tree", step, emitted=2, gap_s=0.01)
    found = samples(metrics)

    assert [found["medusa_head_evaluated_total", head] for head in ("1", "2")] == [1, 1]
    assert [found["medusa_head_top1_correct_total", head] for head in ("1", "2")] == [1, 0]
    assert found["medusa_head_evaluated_total", "3"] == 0
    assert found["medusa_step_seconds_sum", "verify"] == 0.004


def test_the_plain_step_and_the_rows_in_use_are_told() -> None:
    metrics = Metrics("demo", 1)
    metrics.of_model(INFO).set_cache_rows(75)
    found = samples(metrics)

    assert found["medusa_plain_step_seconds", ""] == 0.005
    assert found["medusa_kv_cache_usage_ratio", ""] == 0.25


def test_a_sign_of_life_brings_the_devices_memory() -> None:
    metrics = Metrics("demo", 1)
    metrics.count_heartbeat(1000.0, {"allocated": 5, "reserved": 9})
    metrics.count_heartbeat(1001.0, {})
    found = samples(metrics)

    assert found["medusa_worker_last_heartbeat_seconds", "0"] == 1001.0
    assert found["medusa_device_memory_bytes", "reserved"] == 9


NAMES = """
medusa_tokens_per_step medusa_acceptance_length medusa_decode_steps_total medusa_spec_decode_num_drafts_total
medusa_spec_decode_num_draft_tokens_total medusa_spec_decode_num_accepted_tokens_total
medusa_spec_decode_num_accepted_tokens_per_pos_total medusa_head_top1_correct_total medusa_head_evaluated_total
medusa_drafted_tokens_total medusa_accepted_tokens_total medusa_tree_nodes medusa_step_seconds
medusa_plain_step_seconds medusa_request_prompt_tokens medusa_request_generation_tokens medusa_requests_total
medusa_http_requests_total medusa_requests_rejected_total medusa_requests_cancelled_total medusa_num_requests_running
medusa_num_requests_waiting medusa_queue_capacity medusa_request_queue_time_seconds
medusa_time_to_first_token_seconds medusa_inter_token_latency_seconds medusa_inter_step_latency_seconds
medusa_e2e_request_latency_seconds medusa_prefill_time_seconds medusa_decode_time_seconds medusa_prompt_tokens_total
medusa_generation_tokens_total medusa_prompt_cache_queries_total medusa_prompt_cache_hits_total
medusa_prompt_cache_hit_tokens_total medusa_worker_up medusa_worker_last_heartbeat_seconds
medusa_worker_restarts_total medusa_kv_cache_usage_ratio medusa_model_load_seconds medusa_device_memory_bytes
medusa_decode_seconds_total medusa_plain_decode_seconds_total medusa_worker_process_resident_memory_bytes
medusa_worker_process_cpu_seconds_total
medusa_build_info process_resident_memory_bytes python_info
""".split()


def test_every_promised_metric_is_exposed_by_a_running_server(server: Running) -> None:
    server.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "Hello world"}]})
    exposed = server.get("/metrics").text
    families = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE ")}

    assert sorted(set(NAMES) - families) == []


def test_closed_labels_begin_at_zero_so_that_the_first_event_is_a_rise() -> None:
    metrics = Metrics("demo", 4)
    metrics.of_model(INFO)
    metrics.expect_http("/v1/completions", "POST", (200, 503))
    found = samples(metrics)
    begun = {
        "medusa_requests_rejected_total": "auth connections draining invalid queue_full rate_limited too_large",
        "medusa_requests_cancelled_total": "decode prefill queued",
        "medusa_worker_restarts_total": "crash,0 hang,0 manual,0 oom,0",
        "medusa_decode_steps_total": "chain off static tree",
        "medusa_decode_seconds_total": "chain off static tree",
        "medusa_plain_decode_seconds_total": "chain off static tree",
        "medusa_drafted_tokens_total": "grammar heads lookup prediction recycling",
        "medusa_accepted_tokens_total": "grammar heads lookup prediction recycling",
        "medusa_head_evaluated_total": "1 2 3 4",
        "medusa_head_top1_correct_total": "1 2 3 4",
        "medusa_spec_decode_num_accepted_tokens_per_pos_total": "0 1 2",
        "medusa_http_requests_total": "/v1/completions,POST,200 /v1/completions,POST,503",
        "medusa_requests_total": " ".join(
            f"{endpoint},{reason}"
            for endpoint in ("chat", "completions")
            for reason in ("abort", "error", "length", "stop", "timeout", "tool_calls")
        ),
    }

    for name, labels in begun.items():
        assert sorted(label for found_name, label in found if found_name == name) == labels.split(), name
        assert all(found[name, label] == 0 for label in labels.split()), name


def test_every_reason_to_turn_a_request_away_is_one_that_begins_at_zero() -> None:
    metrics = Metrics("demo", 4)
    begun = {label for name, label in samples(metrics) if name == "medusa_requests_rejected_total"}

    assert {problem.rejected_as for problem in PROBLEMS.values()} - {None} <= begun


def test_a_page_does_not_tell_when_each_series_was_made() -> None:
    metrics = Metrics("demo", 4)
    metrics.of_model(INFO)

    assert b"_created" not in metrics.expose()


def test_the_time_of_steps_is_told_as_they_are_delivered() -> None:
    metrics = Metrics("demo", 4)
    model = metrics.of_model(INFO)
    model.count_step("chain", StepStats({"heads": 2}, [], [], 0.25, {}), emitted=1, gap_s=0.3)
    model.count_step("chain", StepStats({}, [], [], 0.5, {}), emitted=1, gap_s=0.6)
    found = samples(metrics)

    assert found["medusa_decode_seconds_total", "chain"] == 0.25
    assert found["medusa_decode_seconds_total", "off"] == 0.5


def test_a_tree_is_worth_its_tokens_at_a_plain_step_each_and_a_plain_step_what_it_took() -> None:
    metrics = Metrics("demo", 4)
    model = metrics.of_model(INFO)
    model.count_step("tree", StepStats({"heads": 7}, ["heads"] * 2, [], 0.008, {}), emitted=3, gap_s=0.008)
    model.count_step("tree", StepStats({}, [], [], 0.02, {}), emitted=1, gap_s=0.02)
    found = samples(metrics)

    assert found["medusa_plain_decode_seconds_total", "tree"] == 3 * INFO.plain_step_s
    assert found["medusa_plain_decode_seconds_total", "off"] == 0.02


def test_what_a_plain_step_takes_is_learnt_from_traffic_but_not_from_one_that_stalled() -> None:
    metrics = Metrics("demo", 4)
    model = metrics.of_model(INFO)

    def learnt(seconds: float, times: int = 1) -> float:
        for _ in range(times):
            model.count_step("off", StepStats({}, [], [], seconds, {}), emitted=1, gap_s=seconds)
        return samples(metrics)["medusa_plain_step_seconds", ""]

    assert INFO.plain_step_s == 0.005
    assert learnt(60.0) < 0.0065
    assert abs(learnt(0.010, times=500) - 0.010) < 0.0001


def test_the_workers_memory_is_told_while_there_is_a_worker() -> None:
    metrics, name = Metrics("demo", 4), ("medusa_worker_process_resident_memory_bytes", "")

    assert name not in samples(metrics)
    metrics.watch_worker(os.getpid())
    assert samples(metrics)[name] > 1e6
    metrics.watch_worker(None)
    assert name not in samples(metrics)


def test_each_size_that_auto_takes_has_a_bucket_of_its_own() -> None:
    metrics = Metrics("demo", 4)
    for drafted in (0, 1, 3, 7, 15):
        metrics.of_model(INFO).count_step(
            "tree", StepStats({"heads": drafted}, [], [], 0.01, {}), emitted=1, gap_s=0.01
        )
    found = samples(metrics)
    counts = [found["medusa_tree_nodes_bucket", bucket] for bucket in buckets(metrics, "medusa_tree_nodes")]

    assert counts[:6] == [1, 2, 3, 4, 5, 5]


def test_a_step_that_checked_no_draft_is_plain_decoding_whatever_was_asked_for() -> None:
    metrics = Metrics("demo", 4)

    metrics.of_model(INFO).count_step("tree", StepStats({}, [], [], 0.01, {}), emitted=1, gap_s=0.01)

    assert samples(metrics)["medusa_decode_steps_total", "off"] == 1
