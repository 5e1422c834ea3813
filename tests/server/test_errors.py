import inspect
import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from medusa_core import errors
from server.errors import (
    PROBLEMS,
    BodyTooLarge,
    HeadersTooLarge,
    InvalidApiKey,
    MalformedHttp,
    RateLimited,
    RequestTooSlow,
    TooManyConnections,
    error_body,
    error_response,
    problem_of,
)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_engine_has_a_row(name: str) -> None:
    assert getattr(errors, name) in PROBLEMS


def test_the_list_of_errors_is_complete() -> None:
    classes = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)}

    assert classes == set(errors.__all__)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidParameter("x", "top_p"), 400, "invalid_value"),
        (errors.UnsupportedParameter("n", "later"), 400, "unsupported_parameter"),
        (errors.PromptTooLong(9, 1, 8, "prompt"), 400, "context_length_exceeded"),
        (errors.UnknownModel("x", ["y"]), 404, "model_not_found"),
        (errors.MissingChatTemplate("x"), 400, "missing_chat_template"),
        (errors.QueueFull(3, 7), 429, "queue_full"),
        (errors.NotReady("loading", 5), 503, "not_ready"),
        (errors.QueueTimeout(2.5, 7), 503, "deadline_exceeded_in_queue"),
        (errors.RequestTimeout(2.5), 504, "deadline_exceeded"),
        (errors.EngineError("x"), 500, None),
        (errors.OutOfMemory("x"), 503, "out_of_memory"),
        (errors.DeviceFault("x"), 500, "device_fault"),
        (errors.WorkerDied("x"), 500, "worker_died"),
        (InvalidApiKey("x"), 401, "invalid_api_key"),
        (BodyTooLarge(9), 413, "request_too_large"),
        (HeadersTooLarge(9), 431, "header_too_large"),
        (MalformedHttp("x"), 400, "malformed_http"),
        (RequestTooSlow("body", 2.5), 408, "request_timeout"),
        (RateLimited(60, 7), 429, "rate_limit_exceeded"),
        (TooManyConnections(9), 503, "too_many_connections"),
        (HTTPException(404), 404, None),
        (RequestValidationError([]), 400, "invalid_value"),
        (KeyError("secret"), 500, None),
    ],
)
def test_status_and_code_follow_the_class(error: Exception, status: int, code: str | None) -> None:
    assert (problem_of(error).status, problem_of(error).code) == (status, code)


def test_a_subclass_without_a_row_is_its_parent() -> None:
    class Odd(errors.QueueFull):
        pass

    assert problem_of(Odd(1, 1)) is PROBLEMS[errors.QueueFull]


def test_overload_says_when_to_come_back() -> None:
    assert error_response(errors.QueueFull(3, 7)).headers["retry-after"] == "7"
    assert error_response(errors.QueueTimeout(2.5, 7)).headers["retry-after"] == "7"


def test_a_queue_without_places_does_not_count_who_waits() -> None:
    assert str(errors.QueueFull(0, 7)) == "the queue is full, one runs and none may wait; retry in 7 s"


def test_what_would_fail_again_is_not_to_be_tried_again() -> None:
    assert error_response(errors.RequestTimeout(2.5)).headers["x-should-retry"] == "false"
    assert error_response(errors.OutOfMemory("x")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_response(errors.QueueTimeout(2.5, 7)).headers


def test_a_bug_tells_the_client_nothing_of_itself() -> None:
    assert "secret" not in json.dumps(error_body(KeyError("secret")))


def test_a_message_that_quotes_broken_text_can_still_be_sent() -> None:
    body = error_response(errors.UnknownModel("\ud800", ["tiny"])).body

    assert json.loads(bytes(body))["error"]["code"] == "model_not_found"
