import json

from medusa_core.evaluation.machine import machine


def test_what_ran_where_is_told_in_json() -> None:
    found = json.loads(json.dumps(machine()))

    assert {"cpu", "cores", "threads", "device", "python", "torch", "transformers", "revision"} <= found.keys()
    assert found["cpu"]
