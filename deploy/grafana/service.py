"""How fast answers come and whether all is well: the other rows of the dashboard."""

from deploy.grafana.panel import MODEL, SERVER, Panel, Query, Row, counts, mean, rate, share, spread, summed

__all__ = ["CACHE", "LATENCY", "MACHINE", "OUTCOMES", "TRAFFIC"]

API = SERVER + ', handler=~"/v1/.*"'
RESTARTS = f"increase(medusa_worker_restarts_total{{{SERVER}}}[$__rate_interval])"
OWN = SERVER + ', job="medusa"'

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Time to first token",
            "From the arrival of a request to its first token, waiting in the queue included.",
            "s",
            spread("medusa_time_to_first_token_seconds"),
        ),
        Panel(
            "Time between steps",
            "Pauses a reader sees: text arrives in bursts, one burst of tokens a step.",
            "s",
            spread("medusa_inter_step_latency_seconds"),
        ),
        Panel(
            "Time per token",
            "The time of a step shared by its tokens, the bonus token among them: the inverse of an answer's speed.",
            "s",
            spread("medusa_inter_token_latency_seconds"),
        ),
        Panel(
            "Whole request",
            "From the arrival of a request to its last token.",
            "s",
            spread("medusa_e2e_request_latency_seconds"),
        ),
        Panel(
            "Time in the queue",
            "How long requests wait until the worker is free.",
            "s",
            spread("medusa_request_queue_time_seconds"),
        ),
        Panel(
            "Time in prefill and decoding",
            "Mean time a request spends on reading its prompt, and on the steps of its answer.",
            "s",
            (
                Query(mean("medusa_prefill_time_seconds"), "prefill"),
                Query(mean("medusa_decode_time_seconds"), "decoding"),
            ),
            is_stacked=True,
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Token throughput",
            "Tokens of prompts and of answers each second.",
            "suffix: tokens/s",
            (
                Query(summed("medusa_prompt_tokens_total"), "prompts"),
                Query(summed("medusa_generation_tokens_total"), "answers"),
            ),
        ),
        Panel(
            "Decode speed",
            "Tokens a second while a server decodes, bonus tokens included: how fast one answer appears.",
            "suffix: tokens/s",
            (Query(share("medusa_tokens_per_step_sum", "medusa_decode_seconds_total", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Queue",
            "Requests that are answered, that wait, and that may wait before others are turned away.",
            "none",
            (
                Query(f"sum(medusa_num_requests_running{{{MODEL}}})", "running"),
                Query(f"sum(medusa_num_requests_waiting{{{MODEL}}})", "waiting"),
                Query(f"sum(medusa_queue_capacity{{{MODEL}}})", "capacity"),
            ),
        ),
        Panel(
            "Prompt length",
            "How many tokens prompts have.",
            "none",
            counts("medusa_request_prompt_tokens"),
            kind="heatmap",
            width=12,
        ),
        Panel(
            "Answer length",
            "How many tokens the answers to a request have.",
            "none",
            counts("medusa_request_generation_tokens"),
            kind="heatmap",
            width=12,
        ),
    ),
)

OUTCOMES = Row(
    "Outcomes",
    (
        Panel(
            "How answers end",
            "stop and length are ends in order, abort is a client that left, error and timeout are ours.",
            "suffix:/s",
            (Query(summed("medusa_requests_total", "finish_reason"), "{{finish_reason}}"),),
            is_stacked=True,
            width=6,
        ),
        Panel(
            "Answers by status",
            "Answers of the API each second by HTTP status; probes and scrapes are left out.",
            "suffix:/s",
            (Query(summed("medusa_http_requests_total", "status", API), "{{status}}"),),
            is_stacked=True,
            width=6,
        ),
        Panel(
            "Turned away",
            "Requests that were refused before they were queued, by the reason.",
            "suffix:/s",
            (Query(summed("medusa_requests_rejected_total", "reason", SERVER), "{{reason}}"),),
            is_stacked=True,
            width=6,
        ),
        Panel(
            "Clients that left",
            "Requests whose client closed the connection before the end, by how far they were.",
            "suffix:/s",
            (Query(summed("medusa_requests_cancelled_total", "stage", SERVER), "{{stage}}"),),
            is_stacked=True,
            width=6,
        ),
    ),
)

CACHE = Row(
    "Cache and memory",
    (
        Panel(
            "Prompts found in the cache",
            "Share of the prompts whose beginning was still in the cache, and of all prompt tokens that this saved.",
            "percentunit",
            (
                Query(share("medusa_prompt_cache_hits_total", "medusa_prompt_cache_queries_total"), "prompts"),
                Query(share("medusa_prompt_cache_hit_tokens_total", "medusa_prompt_tokens_total"), "tokens"),
            ),
            maximum=1.0,
            width=6,
        ),
        Panel(
            "Context in use",
            "How much of the longest possible conversation the present one fills.",
            "percentunit",
            (Query(f"medusa_kv_cache_usage_ratio{{{MODEL}}}", "{{instance}} {{replica}}"),),
            maximum=1.0,
            width=6,
        ),
        Panel(
            "Device memory",
            "Memory of the GPU: in use by tensors, reserved by the worker, there in all; empty on a CPU.",
            "bytes",
            (Query(f"medusa_device_memory_bytes{{{SERVER}}}", "{{instance}} {{replica}} {{kind}}"),),
            width=6,
        ),
        Panel(
            "Memory of the processes",
            "Main memory of the server, which holds text, and of the worker, which holds the model.",
            "bytes",
            (
                Query(f"process_resident_memory_bytes{{{OWN}}}", "{{instance}} {{replica}} server"),
                Query(f"medusa_worker_process_resident_memory_bytes{{{SERVER}}}", "{{instance}} {{replica}} worker"),
            ),
            width=6,
        ),
    ),
)

MACHINE = Row(
    "Servers",
    (
        Panel(
            "Worker",
            "Whether the process that owns the device can answer.",
            "none",
            (Query(f"medusa_worker_up{{{SERVER}}}", "{{instance}} {{replica}}"),),
            kind="states",
            thresholds=((None, "red"), (1.0, "green")),
        ),
        Panel(
            "Worker restarts",
            "Workers that were started again, by how the last one ended.",
            "none",
            (Query(f"sum by (reason) ({RESTARTS})", "{{reason}}"),),
            is_stacked=True,
        ),
        Panel(
            "Last sign of life",
            "How long ago the worker was heard of; it speaks every second while idle and with every step.",
            "s",
            (Query(f"time() - medusa_worker_last_heartbeat_seconds{{{SERVER}}}", "{{instance}} {{replica}}"),),
            thresholds=((None, "green"), (30.0, "yellow"), (120.0, "red")),
        ),
        Panel(
            "Processors",
            "Processor time each second: 1 is one core kept busy.",
            "suffix: cores",
            (
                Query(rate("process_cpu_seconds_total", OWN), "{{instance}} {{replica}} server"),
                Query(rate("medusa_worker_process_cpu_seconds_total", SERVER), "{{instance}} {{replica}} worker"),
            ),
            width=6,
        ),
        Panel(
            "Open files",
            "Share of the files and connections that the server may open.",
            "percentunit",
            (Query(f"process_open_fds{{{OWN}}} / process_max_fds{{{OWN}}}", "{{instance}} {{replica}}"),),
            thresholds=((None, "green"), (0.8, "yellow"), (0.95, "red")),
            maximum=1.0,
            width=6,
        ),
        Panel(
            "Time to load",
            "How long the model took to load the last time.",
            "s",
            (Query(f"medusa_model_load_seconds{{{MODEL}}}", "{{instance}} {{replica}}"),),
            kind="figure",
            thresholds=((None, "blue"),),
            width=6,
        ),
        Panel(
            "Plain step",
            "A step that decides one token, timed at the start, then as seen in traffic: the measure of time saved.",
            "s",
            (Query(f"medusa_plain_step_seconds{{{MODEL}}}", "{{instance}} {{replica}}"),),
            kind="figure",
            thresholds=((None, "blue"),),
            width=6,
        ),
        Panel(
            "What runs",
            "Version, libraries and device of every server.",
            "none",
            (Query(f"medusa_build_info{{{SERVER}}}", ""),),
            kind="table",
            width=24,
            height=5,
        ),
    ),
)
