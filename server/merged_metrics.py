"""What several replicas tell Prometheus, as one answer."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

__all__ = ["merged_metrics"]


def merged_metrics(answers: Mapping[str, Response]) -> Response:
    """Every sample of every answer, with a label `replica` that tells whose it is; or the first answer that has none.

    answers: to /metrics, in the text format, by the name of the replica.
    """
    refused = next((answer for answer in answers.values() if answer.status_code != 200), None)
    if refused is not None:
        return refused
    families: dict[str, Metric] = {}
    for replica in sorted(answers):
        for family in text_string_to_metric_families(bytes(answers[replica].body).decode()):
            one = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            one.samples += [sample._replace(labels={**sample.labels, "replica": replica}) for sample in family.samples]
    # all that is asked of a registry here is to collect
    text = generate_latest(cast(CollectorRegistry, SimpleNamespace(collect=families.values)))
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
