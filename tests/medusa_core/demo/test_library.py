import ast
from pathlib import Path

import pytest

from medusa_core.demo.library import (
    SourceFile,
    compiled_names,
    module_name,
    names_in_source,
    reexports,
    source_files,
    topics,
)

SOURCE = '''"""A module."""

def shout(text, /, *, times=1) -> str:
    """Say it loudly."""

class Box:
    """Holds a thing."""

    def __init__(self, thing, lid=None):
        """Make one."""

    def open(self, gently: bool = True):
        """Open it."""

    @staticmethod
    def weigh(box):
        """In grams."""

    @property
    def colour(self):
        """Mostly brown."""

def _hidden():
    """Not for users."""

def undocumented(): ...
'''


def names(module: str = "box", exported: dict[str, str] | None = None) -> dict[str, tuple[str, str, bool]]:
    file = SourceFile(f"{module}.py", module, SOURCE)
    found = names_in_source(file, exported if exported is not None else {})
    return {name.name: (name.kind, name.signature, name.is_public) for name in found}


def test_signatures_are_what_a_caller_writes() -> None:
    assert names() == {
        "box": ("module", "", True),
        "box.shout": ("function", "(text, /, *, times=1)", True),
        "box.Box": ("class", "(thing, lid=None)", True),
        "box.Box.__init__": ("method", "(thing, lid=None)", False),
        "box.Box.open": ("method", "(gently=True)", True),
        "box.Box.weigh": ("method", "(box)", True),
        "box.Box.colour": ("property", "", True),
        "box._hidden": ("function", "()", False),
    }


def test_a_private_module_has_public_names_only_where_a_package_exports_them() -> None:
    found = names("_box", {"_box.shout": "box.shout"})

    assert [name for name, (_, _, is_public) in found.items() if is_public] == ["box.shout"]


def test_the_place_of_a_docstring_is_where_the_docstring_is() -> None:
    lines = SOURCE.splitlines()
    for name in names_in_source(SourceFile("box.py", "box", SOURCE), {}):
        assert name.lines is not None
        first, last = name.lines
        assert ast.literal_eval("\n".join(lines[first - 1 : last]).strip()) == name.doc


def test_packages_export_what_their_submodules_list() -> None:
    package = SourceFile("box/__init__.py", "box", "from .lid import *\nfrom .side import left, _right\n")
    lid = SourceFile("box/lid.py", "box.lid", "__all__ = ['close']\n__all__ += ['lock']\n")
    side = SourceFile("box/side.py", "box.side", "")

    assert reexports([package, lid, side]) == {
        "box.lid.close": "box.close",
        "box.lid.lock": "box.lock",
        "box.side.left": "box.left",
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [("json/__init__.py", "json"), ("json/decoder.py", "json.decoder"), ("posixpath.py", "os.path")],
)
def test_modules_have_the_names_users_know(path: str, name: str) -> None:
    assert module_name(Path(path)) == name


def test_tests_tables_and_other_peoples_packages_are_not_read(tmp_path: Path) -> None:
    for name in ("textwrap.py", "test/a.py", "site-packages/a.py", "encodings/cp1.py", "this.py", "empty.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.py" else SOURCE)

    assert [file.path for file in source_files(tmp_path)] == ["textwrap.py"]


def test_names_written_in_c_are_asked_of_the_interpreter() -> None:
    found = {name.name: name for name in compiled_names({"math.sqrt"})}

    assert found["len"].signature == "(obj, /)"
    assert found["str.split"].kind == "method"
    assert "self" not in found["str.split"].signature
    assert "math.sqrt" not in found  # known already
    assert "math.sin" in found
    assert "os.listdir" in found


def test_the_topics_of_help_are_there() -> None:
    assert "with" in topics()
