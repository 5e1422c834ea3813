import time
from pathlib import Path

import httpx

from tests.server import fake_engine
from tests.server.running import MODEL, running

# "!" is 2 and so on: one token a character
TEN = list(range(2, 12))


def test_the_metrics_hold_what_was_delivered(tmp_path: Path) -> None:
    with running(tmp_path, queue_size=5) as server, server.openai() as client:
        # eleven tokens with the stop token: one from the prompt, steps of 3, 3, 3 and 1
        client.completions.create(model=MODEL, prompt=TEN, max_tokens=50)
        # five tokens: one, three, and one of three that the limit cut
        for _ in client.completions.create(model=MODEL, prompt=TEN, max_tokens=5, stream=True):
            pass
        # three tokens: one, and two of three that the stop string cut
        client.completions.create(model=MODEL, prompt=TEN, max_tokens=50, stop="#")
        server.post("/v1/completions", {"model": MODEL, "prompt": TEN, "n": 0})
        server.wait_for("medusa_num_requests_running", 0)
        found = server.metrics()

    expected = {
        "medusa_decode_steps_total mode=tree": 4 + 2 + 1,
        "medusa_tokens_per_step_count": 7,
        "medusa_tokens_per_step_sum": 10 + 4 + 2,
        "medusa_tokens_per_step_bucket le=1.0": 2,
        "medusa_tokens_per_step_bucket le=2.0": 3,
        "medusa_tokens_per_step_bucket le=9.0": 7,
        "medusa_acceptance_length_count": 7,
        # a step of one token was cut after its first accepted draft
        "medusa_acceptance_length_sum": (2 + 2 + 2 + 1) + (2 + 1) + 2,
        "medusa_acceptance_length_bucket le=0.0": 0,
        "medusa_acceptance_length_bucket le=1.0": 2,
        "medusa_drafted_tokens_total source=heads": 7 * 7,
        "medusa_accepted_tokens_total source=heads": 12,
        "medusa_spec_decode_num_drafts_total": 7,
        "medusa_spec_decode_num_draft_tokens_total": 49,
        "medusa_spec_decode_num_accepted_tokens_total": 12,
        "medusa_spec_decode_num_accepted_tokens_per_pos_total position=0": 7,
        "medusa_spec_decode_num_accepted_tokens_per_pos_total position=1": 5,
        "medusa_tree_nodes_sum": 7 * 8,
        "medusa_generation_tokens_total": 11 + 5 + 3,
        "medusa_request_generation_tokens_sum": 11 + 5 + 3,
        "medusa_request_generation_tokens_count": 3,
        "medusa_prompt_tokens_total": 30,
        "medusa_request_prompt_tokens_count": 3,
        "medusa_prompt_cache_queries_total": 3,
        "medusa_prompt_cache_hits_total": 2,
        "medusa_prompt_cache_hit_tokens_total": 18,
        "medusa_requests_total endpoint=completions finish_reason=stop": 2,
        "medusa_requests_total endpoint=completions finish_reason=length": 1,
        "medusa_requests_rejected_total reason=invalid": 1,
        "medusa_http_requests_total handler=/v1/completions method=POST status=200": 3,
        "medusa_http_requests_total handler=/v1/completions method=POST status=400": 1,
        "medusa_inter_token_latency_seconds_count": 16,
        "medusa_inter_step_latency_seconds_count": 7,
        "medusa_time_to_first_token_seconds_count": 3,
        "medusa_e2e_request_latency_seconds_count": 3,
        "medusa_request_queue_time_seconds_count": 3,
        "medusa_prefill_time_seconds_count": 3,
        "medusa_decode_time_seconds_count": 3,
        "medusa_num_requests_waiting": 0,
        "medusa_queue_capacity": 5,
        "medusa_worker_up": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["medusa_requests_cancelled_total stage=decode"] == 0


def test_speculation_off_is_a_mode_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for mode in ("off", "chain", "auto"):
            server.post("/v1/completions", {"model": MODEL, "prompt": TEN, "speculation": {"mode": mode}})
        found = server.metrics()

    assert [found[f"medusa_decode_steps_total mode={mode}"] for mode in ("off", "chain", "tree")] == [4, 4, 4]


def test_unknown_paths_share_one_label(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for path in ("/a", "/b/c", "/v1/models/x"):
            server.get(path)
        found = server.metrics()

    assert found["medusa_http_requests_total handler=unknown method=GET status=404"] == 2
    assert found["medusa_http_requests_total handler=/v1/models/{name:path} method=GET status=404"] == 1


def test_a_model_that_still_loads_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path, wait=False, heads=fake_engine.SLOW) as server:
        refused = server.get("/ready")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert (
            server.post("/v1/completions", {"model": MODEL, "prompt": "too soon"}).json()["error"]["code"]
            == "not_ready"
        )
        assert server.get("/v1/models").json()["data"][0]["id"] == MODEL
        while server.get("/health").json()["progress"] == 0:
            time.sleep(0.01)
        loading = {"status": "ok", "state": "loading", "reason": "loading the fake model", "progress": 0.5}
        assert server.get("/health").json() == loading
        server.wait_for("medusa_worker_up", 1)
        assert server.get("/ready").status_code == 200


def test_probes_tell_a_loaded_model(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.get("/health").json() == {
            "status": "ok",
            "state": "ready",
            "reason": "the model is loaded",
            "progress": 1.0,
        }
        assert server.get("/ready").json() == {"status": "ready"}
        assert server.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_probes_that_ask_for_headers_alone_get_the_status(tmp_path: Path) -> None:
    with running(tmp_path, api_key=("secret",)) as server:
        answers = [httpx.head(f"{server.url}{path}", timeout=20) for path in ("/health", "/ready")]

    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b""), (200, b"")]
