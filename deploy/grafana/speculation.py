"""What speculation brings: the first two rows of the dashboard."""

from deploy.grafana.panel import MODEL, Panel, Query, Row, counts, in_range, mean, share, summed

__all__ = ["GLANCE", "SPECULATION"]

# Time saved: what the tokens of all steps would have taken one by one, less what the steps took.
PLAIN_TIME = summed("medusa_plain_decode_seconds_total")
PLAIN_TIME_SHOWN = f"sum({in_range('medusa_plain_decode_seconds_total')})"
STEP_TIME = summed("medusa_decode_seconds_total")
STEP_TIME_SHOWN = f"sum({in_range('medusa_decode_seconds_total')})"
STEPS_SHOWN = f"sum({in_range('medusa_tokens_per_step_count')})"
DRAFTING = summed("medusa_step_seconds_sum", labels=MODEL + ', phase=~"draft|accept"')
FIRING = 'ALERTS{alertname=~"Medusa.*", alertstate="firing", instance=~"$instance|"}'

BAD_BELOW = ((None, "red"), (1.2, "yellow"), (1.8, "green"))

GLANCE = Row(
    "At a glance",
    (
        Panel(
            "Tokens per step, shown time",
            "Tokens of one pass of the model, the bonus token included: plain decoding is 1.",
            "none",
            (Query(f"sum({in_range('medusa_tokens_per_step_sum')}) / ({STEPS_SHOWN} > 0)", "tokens per step"),),
            kind="figure",
            thresholds=BAD_BELOW,
            width=4,
            height=4,
            decimals=2,
        ),
        Panel(
            "Decode speed-up, shown time",
            "How many times as long plain decoding would have taken; below 1 speculation costs time.",
            "suffix:x",
            (Query(f"{PLAIN_TIME_SHOWN} / ({STEP_TIME_SHOWN} > 0)", "times"),),
            kind="figure",
            thresholds=((None, "red"), (1.0, "yellow"), (1.3, "green")),
            width=4,
            height=4,
            decimals=2,
        ),
        Panel(
            "Time saved, shown time",
            "What the tokens would have taken one plain step each, less what their steps did take.",
            "s",
            (Query(f"{PLAIN_TIME_SHOWN} - {STEP_TIME_SHOWN}", "saved"),),
            kind="figure",
            thresholds=((None, "red"), (0.0, "green")),
            width=4,
            height=4,
        ),
        Panel(
            "Tokens, shown time",
            "Tokens that were answered, the first one of each answer among them.",
            "short",
            (Query(f"sum({in_range('medusa_generation_tokens_total')})", "tokens"),),
            kind="figure",
            thresholds=((None, "blue"),),
            width=4,
            height=4,
        ),
        Panel(
            "Requests waiting",
            "Requests in the queues now; each server answers one at a time.",
            "none",
            (Query(f"sum(medusa_num_requests_waiting{{{MODEL}}})", "waiting"),),
            kind="figure",
            thresholds=((None, "green"), (4.0, "yellow"), (16.0, "red")),
            width=4,
            height=4,
        ),
        Panel(
            "Alerts firing",
            "Alarms that are on now; docs/operations.md has a paragraph for each.",
            "none",
            (Query(f"count({FIRING}) or vector(0)", "alerts"),),
            kind="figure",
            thresholds=((None, "green"), (1.0, "red")),
            width=4,
            height=4,
        ),
    ),
)

SPECULATION = Row(
    "Speculation",
    (
        Panel(
            "Tokens per step",
            "Tokens of one pass of the model, the bonus token included: 1 is plain decoding, 2 to 3 is usual.",
            "none",
            (Query(mean("medusa_tokens_per_step", "instance"), "{{instance}}"),),
            thresholds=BAD_BELOW,
        ),
        Panel(
            "Acceptance length",
            "How many drafted tokens of a step were right, the bonus token not counted: the higher the better.",
            "none",
            counts("medusa_acceptance_length"),
            kind="heatmap",
        ),
        Panel(
            "Time saved",
            "Seconds of decoding saved in each second: what plain steps would have taken, less what the steps took.",
            "s",
            (
                Query(PLAIN_TIME, "plain steps would take"),
                Query(STEP_TIME, "the steps took"),
                Query(f"{PLAIN_TIME} - {STEP_TIME}", "saved"),
            ),
            minimum=None,
        ),
        Panel(
            "Acceptance by head",
            "How often a head's first guess was the token that was emitted, judged only where all before it was right.",
            "percentunit",
            (Query(share("medusa_head_top1_correct_total", "medusa_head_evaluated_total", "head"), "head {{head}}"),),
            maximum=1.0,
        ),
        Panel(
            "Acceptance by position",
            "Share of the trees in which a draft at this depth, counted from 0, and all before it were right.",
            "percentunit",
            (
                Query(
                    f"{summed('medusa_spec_decode_num_accepted_tokens_per_pos_total', 'position')} "
                    f"/ on () group_left () ({summed('medusa_spec_decode_num_drafts_total')} > 0)",
                    "position {{position}}",
                ),
            ),
            maximum=1.0,
        ),
        Panel(
            "Accepted by source",
            "Drafts that were right each second, by who proposed them; bonus tokens are nobody's.",
            "suffix: tokens/s",
            (Query(summed("medusa_accepted_tokens_total", "source"), "{{source}}"),),
            is_stacked=True,
        ),
        Panel(
            "Right drafts by source",
            "Share of a source's drafts that were right: low by design, as of siblings in a tree at most one is.",
            "percentunit",
            (Query(share("medusa_accepted_tokens_total", "medusa_drafted_tokens_total", "source"), "{{source}}"),),
        ),
        Panel(
            "Tree nodes",
            "Size of the trees that were checked, the root included: 1 is plain decoding.",
            "none",
            counts("medusa_tree_nodes"),
            kind="heatmap",
        ),
        Panel(
            "Steps by mode",
            "Passes of the model each second by the kind of tree; off checked no draft, whatever was asked for.",
            "suffix: steps/s",
            (Query(summed("medusa_decode_steps_total", "mode"), "{{mode}}"),),
            is_stacked=True,
        ),
        Panel(
            "Draft overhead",
            "Share of a step that plain decoding would not need; empty where steps are recorded and not timed inside.",
            "percentunit",
            (Query(f"{DRAFTING} / ({summed('medusa_step_seconds_sum')} > 0)", "draft and accept"),),
            thresholds=((None, "green"), (0.3, "yellow"), (0.45, "red")),
        ),
        Panel(
            "Parts of a step",
            "Mean time of each part of a step; empty where steps are recorded and not timed inside.",
            "s",
            (Query(mean("medusa_step_seconds", "phase"), "{{phase}}"),),
            is_stacked=True,
        ),
        Panel(
            "Drafts checked and accepted",
            "Trees, drafted tokens in them and accepted ones each second, under the names that other servers use.",
            "suffix:/s",
            (
                Query(summed("medusa_spec_decode_num_drafts_total"), "trees"),
                Query(summed("medusa_spec_decode_num_draft_tokens_total"), "drafted tokens"),
                Query(summed("medusa_spec_decode_num_accepted_tokens_total"), "accepted tokens"),
            ),
        ),
    ),
)
