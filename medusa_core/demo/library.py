"""What the running interpreter's standard library says about itself: source files and documented names.

Documentation is read from the syntax trees of the sources, so nothing is imported for it and the result depends on the
Python version alone. Only names written in C are asked of the interpreter, from a short list of harmless modules.
"""

import ast
import copy
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DocumentedName",
    "SourceFile",
    "compiled_names",
    "module_name",
    "names_in_source",
    "reexports",
    "source_files",
    "topics",
]

SKIPPED_FOLDERS = (
    "site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "tkinter", "distutils",
    "ensurepip", "pydoc_data", "encodings", "__pycache__", "__phello__", "_pyrepl",
)  # fmt: skip
"""No data for a language model (tables, tests), or large, old and seldom asked about."""
SKIPPED_FILES = ("this.py", "antigravity.py", "pydoc_topics.py", "_tkinter_finder.py", "turtle.py", "cgitb.py")
SKIPPED_PATTERN = re.compile(r"^_sysconfigdata|^config-|^lib-dynload")

ALIASES = {
    "posixpath": "os.path",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_pydatetime": "datetime",
    "_collections_abc": "collections.abc",
}
"""Modules known to users under another name."""

COMPILED_MODULES = (
    "builtins", "math", "cmath", "itertools", "functools", "collections", "operator", "time", "sys", "os", "gc", "zlib",
    "binascii", "array", "struct", "random", "heapq", "bisect", "re", "unicodedata", "statistics", "hashlib", "hmac",
    "select", "socket", "sqlite3", "weakref", "atexit", "marshal", "errno", "signal", "threading", "contextvars",
    "mmap",
)  # fmt: skip
"""Modules whose C part documents public names; importing them has no side effect."""


@dataclass(frozen=True)
class SourceFile:
    """One module of the library; `path` is relative to the library's folder."""

    path: str
    module: str
    text: str


@dataclass(frozen=True)
class DocumentedName:
    """A module, class, function or method with its documentation; `lines` is the docstring's place in `path`."""

    name: str
    kind: str
    signature: str
    doc: str
    path: str | None
    lines: tuple[int, int] | None
    is_public: bool


def source_files(root: Path | None = None) -> Iterator[SourceFile]:
    """All library sources worth reading, sorted by path."""
    folder = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if any(part in SKIPPED_FOLDERS or SKIPPED_PATTERN.match(part) for part in relative.parts):
            continue
        if relative.name in SKIPPED_FILES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield SourceFile(str(relative), module_name(relative), text)


def module_name(path: Path) -> str:
    """`json/decoder.py` is `json.decoder`, `json/__init__.py` is `json`."""
    parts = list(path.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    dotted = ".".join(parts)
    return ALIASES.get(dotted, dotted)


def names_in_source(file: SourceFile, exported: dict[str, str]) -> Iterator[DocumentedName]:
    """Every documented name of one file, private ones included.

    exported: public name by defining name, for packages that re-export what a submodule defines.
    """
    tree = ast.parse(file.text)
    public_module = not any(part.startswith("_") for part in file.module.split("."))
    yield from _documented(tree, file, file.module, "module", "", public_module)
    for node in tree.body:
        yield from _names_in_body(node, file, file.module, exported, public_module, inside_class=False)


def _names_in_body(
    node: ast.stmt, file: SourceFile, prefix: str, exported: dict[str, str], is_public: bool, inside_class: bool
) -> Iterator[DocumentedName]:
    if isinstance(node, ast.If | ast.Try):
        for child in node.body:
            yield from _names_in_body(child, file, prefix, exported, is_public, inside_class)
        return
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    defined = f"{prefix}.{node.name}"
    name = exported.get(defined, defined)
    public = (is_public or defined in exported) and not node.name.startswith("_")
    if isinstance(node, ast.ClassDef):
        yield from _documented(node, file, name, "class", _class_signature(node), public)
        for child in node.body:
            yield from _names_in_body(child, file, name, exported, public, inside_class=True)
        return
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    if decorators & {"property", "functools.cached_property", "cached_property"}:
        yield from _documented(node, file, name, "property", "", public)
        return
    bound = inside_class and "staticmethod" not in decorators
    kind = "method" if inside_class else "function"
    yield from _documented(node, file, name, kind, _signature(node.args, skip_first=bound), public)


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    file: SourceFile,
    name: str,
    kind: str,
    signature: str,
    is_public: bool,
) -> Iterator[DocumentedName]:
    doc = ast.get_docstring(node)
    if doc is None or not doc.strip():
        return
    place = node.body[0]
    end = place.end_lineno if place.end_lineno is not None else place.lineno
    yield DocumentedName(name, kind, signature, doc, file.path, (place.lineno, end), is_public)


def _class_signature(node: ast.ClassDef) -> str:
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return _signature(child.args, skip_first=True)
    return ""


def _signature(arguments: ast.arguments, skip_first: bool) -> str:
    """Parameters with defaults and without annotations, as a caller sees them."""
    arguments = copy.deepcopy(arguments)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if skip_first and (arguments.posonlyargs or arguments.args):
        (arguments.posonlyargs or arguments.args).pop(0)
        positional = len(arguments.posonlyargs) + len(arguments.args)
        arguments.defaults = arguments.defaults[-positional:] if positional else []
    return f"({ast.unparse(arguments)})"


def reexports(files: list[SourceFile]) -> dict[str, str]:
    """Public name by defining name, from the `from .submodule import ...` lines of package files."""
    by_module = {file.module: file for file in files}
    found: dict[str, str] = {}
    for file in files:
        if not file.path.endswith("__init__.py") or file.module.startswith("_"):
            continue
        for node in ast.parse(file.text).body:
            if not isinstance(node, ast.ImportFrom) or not (node.level == 1 or node.module is not None):
                continue
            module = node.module if node.module is not None else ""
            source = f"{file.module}.{module}" if node.level == 1 else module
            if source not in by_module or not source.startswith(f"{file.module}."):
                continue
            imported = [alias.name for alias in node.names]
            names = _exported_names(by_module[source]) if imported == ["*"] else imported
            found.update({f"{source}.{name}": f"{file.module}.{name}" for name in names if not name.startswith("_")})
    return found


def _exported_names(file: SourceFile) -> list[str]:
    names: list[str] = []
    for node in ast.parse(file.text).body:
        value = node.value if isinstance(node, ast.Assign | ast.AugAssign) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__" and isinstance(value, ast.List | ast.Tuple):
            names += [str(item.value) for item in value.elts if isinstance(item, ast.Constant)]
    return names


def compiled_names(known: set[str]) -> Iterator[DocumentedName]:
    """Documented public names that exist only in C, and the methods of built-in types."""
    for module_name_ in COMPILED_MODULES:
        try:
            module = importlib.import_module(module_name_)
        except ImportError:
            continue  # an interpreter built without it, such as sqlite3 or mmap
        prefix = "" if module_name_ == "builtins" else f"{module_name_}."
        for attribute in sorted(vars(module)):
            value = vars(module)[attribute]
            name = f"{prefix}{attribute}"
            if attribute.startswith("_") or name in known or not callable(value) or inspect.isfunction(value):
                continue
            if getattr(value, "__module__", None) not in _homes(module_name_):
                continue
            yield from _compiled(name, "class" if inspect.isclass(value) else "function", value)
            if not inspect.isclass(value) or issubclass(value, BaseException):
                continue
            for method in sorted(vars(value)):
                if not method.startswith("_") and f"{name}.{method}" not in known:
                    yield from _compiled(f"{name}.{method}", "method", getattr(value, method))


def _homes(module: str) -> tuple[str, ...]:
    return (module, f"_{module}", "posix") if module == "os" else (module, f"_{module}")


def _compiled(name: str, kind: str, value: object) -> Iterator[DocumentedName]:
    doc = inspect.getdoc(value)
    if not doc or not callable(value) or inspect.isfunction(value):
        return
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        # Older C functions write their signature as the first line of the documentation.
        written, _, rest = doc.partition("\n")
        match = re.match(r"^[\w.]*(\([^\n]*?\))\s*(?:-{1,2}>.*?)?\s*(?:--\s+(.*))?$", written)
        if match is None:
            yield DocumentedName(name, kind, "", doc, None, None, True)
        else:
            text = f"{match.group(2) or ''}\n{rest}".strip()
            if text:
                yield DocumentedName(name, kind, match.group(1), text, None, None, True)
        return
    parameters = list(signature.parameters.values())
    if kind == "method" and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    yield DocumentedName(name, kind, str(signature.replace(parameters=parameters)), doc, None, None, True)


def topics() -> dict[str, str]:
    """The language topics behind `help()`, name to text."""
    texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return dict(sorted(texts.items()))
