"""The rules of the house, read from the syntax tree of every module, so lazy and type-checking imports count."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("medusa_core", "server")

# A module may import the layers behind its own, never its own or an earlier one. A folder is one layer, unless the
# table names modules of it; inside a folder modules may import each other as long as no cycle arises.
LAYERS: dict[str, list[set[str]]] = {
    "medusa_core": [
        {"checkup", "demo"},
        {"training"},
        {"evaluation"},
        {"engine"},
        {"assembly", "output", "pacing.finding"},
        {"generation"},
        {"prefix_cache", "runners"},
        {"decoding"},
        {"attending", "drafters", "loading", "self_test"},
        {"backbone", "acceptance"},
        {"checkpoints", "fusion"},
        {"adjustments", "kv_cache", "heads", "node_choice", "pacing", "pictures"},
        {"memory"},
        {"sampling", "tree", "calibration", "text", "constraints"},
        {"adapters", "quantization", "tokenizer_files", "tool_grammar", "detokenizer"},
        {"config", "chat_templates", "faults", "gbnf", "infill", "token_bytes", "tool_formats"},
        {"errors", "reasons"},
    ],
    "server": [
        {"cli"},
        {"commands"},
        {"serving"},
        {"assembly"},
        {"app"},
        {"routes"},
        {"answering"},
        {"asking", "calling"},
        {"answer", "observing", "rate_limit"},
        {
            "streaming",
            "step_records",
            "token_scores",
            "worker.client",
            "auth",
            "body_guard",
            "grammars",
            "http_protocol",
            "tool_calls",
        },
        {"worker.core_engine", "worker.supervisor"},
        {"worker.child"},
        {
            "errors",
            "metrics",
            "openapi",
            "predicted",
            "call_events",
            "tracing",
            "worker.endings",
            "worker.job",
            "worker.process",
        },
        {"otel"},
        {"exchange"},
        {"conversations", "merged_metrics", "relayed"},
        {"schemas", "settings", "worker.lifeline", "worker.messages", "worker.outbox", "worker.silence"},
        {"allocator", "logs", "open_files"},
    ],
}

# What the server may name of the engine: the package's own exports, resolved on first use, and the modules that hold
# no tensor.
WITHOUT_TENSORS = ("config", "constraints", "errors", "text", "tool_formats", "tool_grammar")
OPEN_TO_SERVER = {"medusa_core", *(f"medusa_core.{name}" for name in WITHOUT_TENSORS)}

# Who may import a library that shapes whatever touches it; nobody else does.
RESERVED: dict[str, set[str]] = {
    "torch": {"medusa_core"},
    "transformers": {
        f"medusa_core.{name}"
        for name in (
            "adapters",
            "backbone",
            "demo",
            "evaluation",
            "kv_cache",
            "loading",
            "quantization",
            "text",
            "tokenizer_files",
            "training",
        )
    },
    "multiprocessing": {"server.worker"},
    "threading": {"server.otel", "server.worker"},
    "concurrent": set(),
    "prometheus_client": {"server.metrics", "server.merged_metrics"},
    "sse_starlette": {"server.streaming"},
    "fastapi": {"server"},
    "pydantic": {"server"},
    "msgspec": {"server"},
    "structlog": {"server.logs"},
    "opentelemetry": {"server.otel"},
}

# What a module may call while it is imported: constructors of values, which are written with a capital, and these.
PURE_FUNCTIONS = {
    "compile", "dict", "field", "float", "frozenset", "getLogger", "get_logger", "int", "len", "log", "range", "set",
    "sorted", "sqrt", "tuple",
}  # fmt: skip
# Constructors whose objects register themselves or hold state; they belong into the function that builds the whole.
STATEFUL = {"APIRouter", "Counter", "FastAPI", "Gauge", "Histogram", "Lock", "Summary", "Thread"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}

every_module = pytest.mark.parametrize("module", sorted(FILES))


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(folder + ".")


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module that a module imports, and the line."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}:{node.lineno} is a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module, node.lineno


def layer_of(module: str) -> tuple[int, str] | None:
    """Index of a module's layer in its package's table and the entry that names it; None for the package itself."""
    package, _, inner = module.partition(".")
    for index, layer in enumerate(LAYERS[package]):
        for entry in layer:
            if is_in(inner, entry):
                return index, entry
    return None


@every_module
def test_a_module_stands_in_the_table_of_layers(module: str) -> None:
    has_code = any(not isinstance(node, ast.Expr) for node in TREES[module].body)
    is_package = FILES[module].name == "__init__.py"

    assert layer_of(module) is not None or module in PACKAGES or (is_package and not has_code)


def test_the_tables_name_nothing_that_is_gone() -> None:
    layered = {f"{package}.{entry}" for package, layers in LAYERS.items() for layer in layers for entry in layer}

    assert {*layered, *OPEN_TO_SERVER, *(keeper for keepers in RESERVED.values() for keeper in keepers)} <= FILES.keys()


@every_module
def test_imports_go_down_the_layers_only(module: str) -> None:
    own = layer_of(module)
    wrong = []
    for target, line in imports(module):
        if target.partition(".")[0] != module.partition(".")[0]:
            continue
        other = layer_of(target) if target in FILES else None
        if own is None or other is None or not (other[0] > own[0] or other[1] == own[1]):
            wrong.append(f"line {line}: {target}")

    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    pending = {module: {t for t, _ in imports(module) if t in FILES and t != module} for module in FILES}
    while leaves := {module for module, targets in pending.items() if not targets & pending.keys()}:
        pending = {module: targets for module, targets in pending.items() if module not in leaves}

    assert pending == {}


@every_module
def test_the_engine_does_not_know_the_server_and_the_server_sees_no_tensor(module: str) -> None:
    package = module.partition(".")[0]
    for target, line in imports(module):
        if package == "server" and is_in(target, "medusa_core"):
            assert target in OPEN_TO_SERVER, f"line {line} imports {target}"
        if package == "medusa_core":
            assert not is_in(target, "server"), f"line {line} imports {target}"


@every_module
def test_a_reserved_library_is_imported_by_its_keepers_only(module: str) -> None:
    for target, line in imports(module):
        keepers = RESERVED.get(target.partition(".")[0])
        if keepers is not None:
            assert any(is_in(module, keeper) for keeper in keepers), f"line {line} imports {target}"


@every_module
def test_nothing_is_global_swallowed_or_imported_with_a_star(module: str) -> None:
    for node in ast.walk(TREES[module]):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: import *"


def names_of(node: ast.expr | None) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node is not None else set()


def test_every_exception_is_caught_in_the_worker_only_and_there_twice_at_most() -> None:
    places = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and names_of(node.type) & {"Exception", "BaseException"}
    ]

    assert [place for place in places if not place.startswith("server.worker.")] == []
    assert len(places) <= 2, places


def is_program(tree: ast.Module) -> bool:
    """Whether a module is made to be run: it ends in `if __name__ == "__main__"`."""
    return any(isinstance(node, ast.If) and "__name__" in names_of(node.test) for node in tree.body)


@every_module
def test_only_programs_and_the_command_line_print(module: str) -> None:
    if module in ("server.cli", "server.__main__") or is_program(TREES[module]):
        return
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]

    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "?")


def is_pure(name: str) -> bool:
    return name in PURE_FUNCTIONS or (name[0].isupper() and name not in STATEFUL)


def work_at_import(body: list[ast.stmt]) -> Iterator[str]:
    """Statements of a module or class body that do more than name things."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from work_at_import(node.body)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            skipped = {id(part) for lazy in ast.walk(node) if isinstance(lazy, ast.Lambda) for part in ast.walk(lazy)}
            calls = [part for part in ast.walk(node) if isinstance(part, ast.Call) and id(part) not in skipped]
            yield from (
                f"line {call.lineno}: {called_name(call)}()" for call in calls if not is_pure(called_name(call))
            )
        elif isinstance(node, ast.If):
            if not names_of(node.test) & {"TYPE_CHECKING", "__name__"}:
                yield f"line {node.lineno}: if"
        elif isinstance(node, ast.Expr):
            if not isinstance(node.value, ast.Constant):
                yield f"line {node.lineno}: an expression"
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.Pass):
            yield f"line {node.lineno}: {type(node).__name__}"


@every_module
def test_importing_a_module_does_no_work(module: str) -> None:
    assert list(work_at_import(TREES[module].body)) == []


@every_module
def test_a_module_has_its_mirrored_test_file(module: str) -> None:
    if FILES[module].name == "__init__.py":
        return  # what a folder exports is tested where it is made
    *folders, name = module.split(".")

    assert ROOT.joinpath("tests", *folders, f"test_{name}.py").is_file(), f"no test file mirrors {module}"


def public_definitions(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def assigned(tree: ast.Module, name: str) -> ast.expr | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    return None


@every_module
def test_public_names_are_all_listed_and_sorted(module: str) -> None:
    public, listed = public_definitions(TREES[module]), assigned(TREES[module], "__all__")
    if isinstance(listed, ast.Call):  # medusa_core's own, sorted from its table
        return
    names = ast.literal_eval(listed) if listed is not None else []

    assert public - set(names) == set()
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[:1].isupper(), name))


def test_every_name_the_engine_exports_exists() -> None:
    table = assigned(TREES["medusa_core"], "_HOME")
    assert table is not None
    homes: dict[str, str] = ast.literal_eval(table)

    missing = {name: home for name, home in homes.items() if f"medusa_core.{home}" not in TREES}
    assert missing == {}
    for name, home in homes.items():
        assert name in public_definitions(TREES[f"medusa_core.{home}"]), f"{home} has no {name}"


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


@every_module
def test_a_public_function_with_a_tensor_gives_its_shape(module: str) -> None:
    without = []
    for function in public_functions(TREES[module].body):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        annotations = [argument.annotation for argument in arguments] + [function.returns]
        if any("Tensor" in names_of(annotation) for annotation in annotations):
            docstring = ast.get_docstring(function)
            if docstring is None or "[" not in docstring:
                without.append(f"line {function.lineno}: {function.name}")

    assert without == []


def described_tree() -> set[str]:
    """Paths in the tree of docs/CONTRIBUTING.md: one name a line, two spaces for each level, then what it is for."""
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"^## The tree\n.*?^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, "the page has no tree"
    paths, folders = set(), []
    for line in found[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        paths.add("/".join(folders) + ("/" if name.endswith("/") else ""))
    return paths


def real_tree() -> set[str]:
    """Top-level entries and, of the two packages, every module and folder."""
    hidden = {".git", ".venv", ".venv-clients", ".venv-ray", ".work", "build", "dist"}

    def entries(folder: Path) -> Iterator[Path]:
        for entry in folder.iterdir():
            is_cache = entry.name == "__pycache__" or re.fullmatch(r"\..*_cache|.*\.egg-info", entry.name) is not None
            is_empty = entry.is_dir() and not any(path.is_file() for path in entry.rglob("*"))
            if entry.name not in {*hidden, ".hypothesis", "__init__.py"} and not is_cache and not is_empty:
                yield entry

    found = [*entries(ROOT), *(entry for package in PACKAGES for entry in entries(ROOT / package))]
    return {entry.relative_to(ROOT).as_posix() + ("/" if entry.is_dir() else "") for entry in found}


def test_the_described_tree_is_the_real_tree() -> None:
    assert described_tree() == real_tree()
