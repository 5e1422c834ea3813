import inspect

from medusa_core import errors


def tree(kind: type, depth: int = 0) -> list[str]:
    lines = [] if kind is not errors.MedusaError else [kind.__name__]
    for child in kind.__subclasses__():
        if child.__module__ != errors.__name__:
            continue  # the server adds errors of its own
        lines += ["  " * (depth + 1) + child.__name__, *tree(child, depth + 1)]
    return lines


def test_the_docstring_draws_the_tree_that_exists() -> None:
    drawn = [line.split("   ")[0] if not line.startswith(" ") else line for line in (errors.__doc__ or "").splitlines()]
    names = [line.split()[0] for line in drawn if line.strip() and line.split()[0] in errors.__all__]
    exist = [line.strip() for line in tree(errors.MedusaError)]

    assert sorted(names) == sorted(exist)


def test_every_error_is_public_and_descends_from_one_base() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]

    assert {kind.__name__ for kind in classes} == set(errors.__all__)
    assert all(issubclass(kind, errors.MedusaError) for kind in classes)


def test_an_overflow_says_what_clients_look_for() -> None:
    message = str(errors.PromptTooLong(90, 20, 100))

    assert "This model's maximum context length is 100 tokens. However, you requested 110 tokens" in message
