"""What several replicas tell Prometheus, as one exposition."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["CONTENT_TYPE_LATEST", "merged_metrics"]


def merged_metrics(texts: Mapping[str, str]) -> bytes:
    """Every sample of every text, with a label `replica` that tells whose it is.

    texts: expositions in the text format, by the name of the replica.
    """
    families: dict[str, Metric] = {}
    for replica in sorted(texts):
        for family in text_string_to_metric_families(texts[replica]):
            one = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            one.samples += [sample._replace(labels={**sample.labels, "replica": replica}) for sample in family.samples]
    # all that is asked of a registry here is to collect
    return generate_latest(cast(CollectorRegistry, SimpleNamespace(collect=families.values)))
