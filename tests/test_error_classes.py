"""The exceptions that Python code can catch, and the one name that messages are logged under."""

import ast
import pickle
import re
import sys
from pathlib import Path

import pytest

import newsrec as nr
from newsrec import errors
from newsrec.__main__ import _mistake
from newsrec.plm_source import find_plm
from newsrec.serving.sessions import require_package
from newsrec.training.checkpoint.read import read_checkpoint, resolve_checkpoint

PACKAGE = Path(nr.__file__).parent
CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.fixture
def found_by(mind_dir, tmp_path):
    """What raises each class, and the builtin class that also catches it."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.ckpt").write_text("no weights", encoding="utf-8")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "manifest.json").write_text("{", encoding="utf-8")
    broken = tmp_path / "broken" / "train"
    broken.mkdir(parents=True)
    for name in ("news.tsv", "behaviors.tsv"):
        (broken / name).write_text("one column\n", encoding="utf-8")
    data, model, missing = nr.DataError, nr.ModelError, FileNotFoundError
    return [
        (lambda: nr.open_mind(tmp_path / "none"), nr.MissingDataError, data, missing),
        (lambda: nr.open_mind(empty), nr.MissingDataError, data, missing),
        (lambda: nr.open_mind(mind_dir).split("val"), nr.MissingDataError, data, missing),
        (lambda: nr.open_mind(tmp_path / "broken"), nr.DataError, data, ValueError),
        (lambda: nr.RunFolder(empty), nr.MissingModelError, model, missing),
        (lambda: resolve_checkpoint("last", empty), nr.MissingModelError, model, missing),
        (lambda: read_checkpoint(empty), nr.MissingModelError, model, missing),
        (lambda: read_checkpoint(tmp_path / "bad.ckpt"), nr.ModelError, model, ValueError),
        (lambda: nr.Recommender.load(tmp_path / "none"), nr.MissingModelError, model, missing),
        (lambda: nr.Recommender.load(empty), nr.MissingModelError, model, missing),
        (lambda: nr.Recommender.load(tmp_path / "export"), nr.ModelError, model, ValueError),
        (lambda: find_plm(str(empty)), nr.MissingModelError, model, missing),
        (lambda: require_package("no_such"), nr.MissingPackageError, nr.UserError, ImportError),
        (lambda: nr.open_mind(mind_dir, "no"), nr.UserError, nr.UserError, ValueError),
    ]


def test_each_mistake_can_be_caught_by_its_class_and_by_the_builtin_one(found_by):
    for mistake, exact, *wider in found_by:
        with pytest.raises(nr.UserError) as raised:
            mistake()
        assert type(raised.value) is exact
        assert all(isinstance(raised.value, kind) for kind in wider)
        assert str(raised.value).endswith((".", "?"))


def test_a_package_that_is_missed_late_is_named_and_no_bug():
    late = _mistake(ModuleNotFoundError("No module", name="no_such_package.part"))
    assert isinstance(late, nr.MissingPackageError)
    assert "run `pip install no_such_package`" in str(late)
    for name in ("newsrec.nothing", "json.nothing", None):
        bug = ModuleNotFoundError("No module", name=name)
        assert _mistake(bug) is bug


def test_a_search_without_optuna_misses_a_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(nr.MissingPackageError, match=r"newsrec\[tune\]"):
        nr.tune(lambda *_: None, {"dim": [1]}, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_public_keeps_its_message_and_can_cross_processes(kind):
    assert getattr(nr, kind.__name__) is kind
    assert issubclass(kind, nr.UserError)
    again = pickle.loads(pickle.dumps(kind("It is not there.")))
    assert type(again) is kind
    assert str(again) == "It is not there."


def test_a_class_whose_data_or_model_is_there_is_no_file_not_found_error():
    for name in ("DataError", "ModelError"):
        assert not issubclass(getattr(nr, name), OSError)
        assert issubclass(getattr(nr, f"Missing{name}"), getattr(nr, name))


def test_the_python_page_describes_every_class():
    page = (PACKAGE.parent / "docs" / "python.md").read_text(encoding="utf-8")
    for kind in CLASSES:
        special = (FileNotFoundError, ImportError, ConnectionError, ValueError)
        builtin = next(base for base in special if issubclass(kind, base))
        row = re.search(rf"^\| `nr.{kind.__name__}` \| (.*) \|$", page, re.MULTILINE)
        assert row is not None, kind
        assert f"`{builtin.__name__}`" in row[1]


def calls_of(*names):
    """Yield each call of these functions or methods in the package: its file and its node."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"{name}(" in text for name in names):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                function = node.func
                name = getattr(function, "attr", getattr(function, "id", None))
                if name in names:
                    yield path.relative_to(PACKAGE).as_posix(), node


def test_every_message_is_logged_below_one_name():
    given = {ast.unparse(call.args[0]) for _, call in calls_of("getLogger")}
    foreign = {
        name for name in given if name.lstrip("f").startswith(("'lightning.", "'torch.", "'ray."))
    }
    assert given - foreign == {"__name__", "'newsrec'"}
    logged = {path for path, _ in calls_of("basicConfig", "addHandler", "StreamHandler")}
    assert logged == {"console.py"}  # in show_our_messages, which only the command calls


def test_using_the_package_adds_no_handler():
    callers = {path for path, _ in calls_of("show_our_messages")}
    starts = {"__main__.py", "serving/http_server.py"}  # of a command, and of a worker's process
    assert {path for path in callers if not path.startswith("commands/")} == starts
