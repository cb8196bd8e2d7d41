"""Presets and the demo: in a clone, in an installed package, and away from both."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from newsrec import shipped
from newsrec.__main__ import main
from newsrec.commands.written_options import with_shipped_files
from newsrec.data.cache import cache_folders
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.report.evaluate import evaluate

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.fixture
def installed(mind_dir, tmp_path, monkeypatch):
    """An installed package whose demo is the tiny MIND, and a current folder without files."""
    folder = tmp_path / "site-packages" / "newsrec" / "shipped"
    shutil.copytree(CONFIGS, folder / "configs")
    shutil.copytree(mind_dir, folder / "data" / "demo")
    monkeypatch.setattr(shipped, "INSTALLED", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_clone_uses_the_files_at_its_top():
    assert shipped.presets() == {name: CONFIGS / f"{name}.yaml" for name in PRESETS}
    assert shipped.shipped("data/demo") == REPOSITORY / "data" / "demo"
    assert not shipped.is_installed(REPOSITORY / "data" / "demo")


def test_an_installed_package_uses_its_own(installed):
    assert shipped.presets() == {name: installed / f"configs/{name}.yaml" for name in PRESETS}
    assert shipped.data_folder("data/demo") == installed / "data" / "demo"
    assert shipped.data_folder("data/mine") == Path("data/mine")


def test_a_presets_name_wins_over_what_has_that_name(installed):
    Path("demo").mkdir()
    Path("ema").write_text("data: {}", encoding="utf-8")
    for name in ("demo", "ema"):
        assert shipped.config_file(name) == str(installed / "configs" / f"{name}.yaml")
        assert shipped.config_file(f"./{name}") == f"./{name}"
    Path("mine").write_text("data: {}", encoding="utf-8")
    assert shipped.config_file("mine") == "mine"


def test_an_unknown_name_is_answered_with_near_ones(installed, capsys):
    with pytest.raises(UserError, match=r"Did you mean demo or demo_best\? `python -m"):
        shipped.config_file("dmo")
    with pytest.raises(UserError, match="Did you mean mind_small_top2 or mind_small"):
        shipped.config_file("mind-small-top2")
    assert "Did you mean demo?" in refused(capsys, "fit", "--config", "dmeo")


def test_a_shipped_path_is_found_where_it_is_not(installed):
    ours = str(installed / "configs" / "trainer" / "cpu.yaml")
    assert shipped.shipped_config("configs/trainer/cpu.yaml") == ours
    for other in (
        "configs/none.yaml",
        "trainer/cpu.yaml",
        "configs",
        "configs/../configs/ema.yaml",
    ):
        assert shipped.shipped_config(other) == other
    Path("configs/trainer").mkdir(parents=True)
    Path("configs/trainer/cpu.yaml").write_text("devices: 1", encoding="utf-8")
    assert shipped.shipped_config("configs/trainer/cpu.yaml") == "configs/trainer/cpu.yaml"
    Path("data/demo").mkdir(parents=True)
    assert shipped.data_folder("data/demo") == Path("data/demo")


def test_names_and_paths_are_replaced_wherever_an_option_has_them(installed):
    demo, cpu = (str(installed / "configs" / f"{name}.yaml") for name in ("demo", "trainer/cpu"))
    words = ["--config", "demo", "--config=demo", "-c", "demo", "--output", "demo"]
    words += ["--trainer", "configs/trainer/cpu.yaml", "--trainer=configs/trainer/cpu.yaml"]
    words += ["--dry_run", "--model.lr", "-1", "configs/demo.yaml", "demo"]
    assert with_shipped_files(words) == [
        *("--config", demo, f"--config={demo}", "-c", demo, "--output", "demo"),
        *("--trainer", cpu, f"--trainer={cpu}", "--dry_run", "--model.lr", "-1", demo, "demo"),
    ]


def test_nothing_is_written_into_an_installed_package(installed, mind_dir, tmp_path):
    before = files_below(installed)
    data = open_mind("data/demo")
    assert data.root == installed / "data" / "demo"
    assert data.cache.is_relative_to(tmp_path / "cache")
    assert all(folder.is_relative_to(tmp_path / "cache") for folder in cache_folders(data.root))
    assert cache_folders(Path("data/demo")) == cache_folders(data.root)
    assert files_below(installed) == before
    for name, array in open_mind(mind_dir).arrays.items():
        np.testing.assert_array_equal(data.arrays[name], array)


def test_a_results_ceiling_is_read_beside_the_shipped_demo(installed, monkeypatch):
    read = []
    monkeypatch.setattr("newsrec.report.evaluate.read_ceiling", lambda root, _: read.append(root))
    assert evaluate(lambda: None, "data/demo", "dev", None) is None
    assert read == [installed / "data" / "demo"]


def test_configs_lists_the_presets_with_what_they_are_for(capsys):
    main(["configs"])
    shown = capsys.readouterr().out
    for name in PRESETS:
        line = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
        assert re.search(rf"^  {name} +{re.escape(line[:60])}", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 100 + len(str(CONFIGS))


@pytest.mark.parametrize("name", PRESETS)
def test_a_copied_preset_has_all_files_that_it_names(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["configs", "copy", name])
    text = (CONFIGS / f"{name}.yaml").read_text()
    named = re.findall(r"^\w+: (\w+/\w+\.yaml)", text, re.MULTILINE)
    copied = {path.relative_to(tmp_path / "configs") for path in files_below(tmp_path)}
    assert copied == {Path(f"{name}.yaml"), *map(Path, named)}
    for path in copied:
        assert (tmp_path / "configs" / path).read_bytes() == (CONFIGS / path).read_bytes()
    assert f"Next: python -m newsrec fit --config configs/{name}.yaml" in capsys.readouterr().out


def test_copies_are_kept_if_they_were_changed(tmp_path, capsys):
    main(["configs", "copy", "all", str(tmp_path)])
    assert files_below(tmp_path) == [
        tmp_path / path.relative_to(CONFIGS) for path in files_below(CONFIGS)
    ]
    changed = tmp_path / "model" / "demo.yaml"
    changed.write_text("dim: 64\n")
    (tmp_path / "demo.yaml").unlink()
    assert f"{changed} is there and differs" in refused(capsys, "configs", "copy", "demo", tmp_path)
    assert not (tmp_path / "demo.yaml").exists()
    assert changed.read_text() == "dim: 64\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["copy"], "configs copy needs a NAME"),
        (["copy", "dmo"], "Did you mean demo or demo_best?"),
        (["list", "demo"], "Did you mean configs copy?"),
        (["demo"], "Choose from list, copy."),
    ],
)
def test_configs_says_what_is_wrong(words, said, capsys):
    assert said in refused(capsys, "configs", *words)
