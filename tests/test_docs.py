"""Every command and every snippet in the README and in docs/ works.

Python blocks are run. Commands are read by their own parsers. A block below the comment
``<!-- run: .ci/fit -->`` is also run whole, by that script.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import newsrec as nr
from newsrec.__main__ import main
from newsrec.export.export import describe
from newsrec.files import file_hash
from newsrec.serving import Recommender

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "data/README.md", "configs/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(?:<!-- run: (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(python (?:-m newsrec|tests/)[^`]+)`")


class Block(NamedTuple):
    page: str
    language: str
    text: str
    run_by: str | None


def blocks():
    found = []
    for page in PAGES:
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        found += [Block(name, lang, code, by or None) for by, lang, code in BLOCK.findall(text)]
        found += [Block(name, "sh", code.replace("\n", " "), None) for code in INLINE.findall(text)]
    return found


BLOCKS = blocks()


def commands():
    """Return each command once, as words: lines joined, comments gone, ``&&`` taken apart."""
    found = {}
    for block in BLOCKS:
        if block.language != "sh":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found[" ".join(words[:end])] = words[:end]
                words = words[end + 1 :]
    return found


COMMAND_LINES = commands()
NEWSREC = {line: words for line, words in COMMAND_LINES.items() if "-m newsrec " in line}


@pytest.mark.parametrize("line", NEWSREC)
def test_a_newsrec_command_is_read_by_its_parser(line, monkeypatch):
    words = NEWSREC[line]
    name, *options = words[words.index("newsrec", words.index("-m")) + 1 :]
    module = importlib.import_module(f"newsrec.commands.{name.replace('-', '_')}")
    monkeypatch.chdir(ROOT)
    read = []

    def stop(*options):
        read.append(options)
        raise SystemExit(0)

    if name == "fit":
        from newsrec.commands.fit import FitCLI

        monkeypatch.setattr(FitCLI, "_parse_ckpt_path", lambda cli: None)  # there is no run
        monkeypatch.setattr(FitCLI, "_set_seed", lambda cli: None)
        monkeypatch.setattr(FitCLI, "instantiate_classes", stop)
    else:
        monkeypatch.setattr(module, "run", stop)
    with pytest.raises(SystemExit) as end:
        main([name, *options])
    assert end.value.code == 0
    assert read or "--help" in options


@pytest.mark.parametrize("line", sorted(COMMAND_LINES.keys() - NEWSREC.keys()))
def test_another_command_names_what_exists(line):
    words = COMMAND_LINES[line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if words[0] == "python" and words[1].startswith("tests/benchmarks/"):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        options = [word.replace("--no-", "--") for word in words[2:] if word.startswith("--")]
        assert all(f'"{option}"' in source for option in options)
    elif words[:3] == ["python", "-m", "sphinx"]:
        assert (ROOT / "docs" / "conf.py").is_file()
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\.\[(\w+)\]", line)
        assert set(extras) <= project["project"]["optional-dependencies"].keys()
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    elif words[0] == "pytest":
        marked = {
            mark.partition(":")[0] for mark in project["tool"]["pytest"]["ini_options"]["markers"]
        }
        assert "-m" not in words or words[words.index("-m") + 1] in marked
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).is_file()
    else:
        assert words[0] in ("printf", "export", "hf")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:configs|tests|docs)/[\w/]+\.\w+)", text)
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert all((ROOT / name).is_file() for name in named), named
    assert all((page.parent / name).is_file() for name in linked), linked


def test_a_block_that_runs_elsewhere_says_where():
    marked = {block.run_by for block in BLOCKS if block.run_by}
    assert ".ci/fit" in marked
    assert all((ROOT / name).is_file() for name in marked)


@pytest.fixture(scope="module")
def recommender(exported_encoders, tmp_path_factory):
    """A recommender of nine news items, from a tiny export."""
    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path_factory.mktemp("docs") / "export"))
    files = {path.name: file_hash(path) for path in folder.iterdir()}
    manifest = describe(module, ["title"], folder) | {"files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    recommender = Recommender.load(folder, threads=1)
    ids = [f"N{i}" for i in range(1, 10)]
    recommender.add_news(ids, [f"Title {i}" for i in ids], ["news"] * 9, [""] * 9)
    return recommender


PYTHON = [b for b in BLOCKS if b.language == "python" and b.run_by is None]


@pytest.mark.parametrize("block", PYTHON, ids=[f"{b.page}-{i}" for i, b in enumerate(PYTHON)])
def test_a_python_block_runs_and_prints_what_it_says(block, recommender, monkeypatch, capsys):
    monkeypatch.setattr(Recommender, "load", lambda folder, threads=None: recommender)
    exec(block.text, {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^print\(.*\)(?:  # (.*))?$", block.text, re.MULTILINE)
    assert len(printed) == len(promised) > 0
    for line, comment in zip(printed, promised, strict=True):
        assert line == comment or not re.fullmatch(r"[\d.]+", comment)


def test_the_notebook_is_kept_without_outputs_and_uses_public_names_only():
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 10
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    sources = ["".join(cell["source"]) for cell in cells]
    for source in sources:
        ast.parse(source)
        assert set(re.findall(r"\bnr\.(\w+)", source)) <= set(nr.__all__)
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert linked
    assert all((ROOT / "docs" / name).is_file() for name in linked)
    install = re.search(r'pip install "newsrec\[([\w,]+)\]"', text)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(install) <= project["optional-dependencies"].keys()
