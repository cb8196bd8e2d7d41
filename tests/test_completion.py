import shutil
import subprocess

import jsonargparse
import pytest
from conftest import refused
from lightning.pytorch.cli import LightningCLI

from newsrec.__main__ import COMMANDS, main
from newsrec.commands import completion
from newsrec.shipped import presets

TAB = """
source SCRIPT
COMP_WORDS=(newsrec "$@"); COMP_CWORD=$#; COMP_TYPE=9; COMP_LINE="newsrec $*"
COMP_POINT=${#COMP_LINE}
_shtab_newsrec newsrec "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(autouse=True)
def own_parser(one_parser, monkeypatch):
    """Keep the parser of other tests from getting the options that completion adds."""
    monkeypatch.setattr(LightningCLI, "setup_parser", one_parser)


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The script of bash, without the options of ``fit`` and ``evaluate``, which take seconds."""
    parser = jsonargparse.ArgumentParser(prog="newsrec fit")
    parser.add_argument("--config", action="config")
    parser.add_argument("--model.residual", type=bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newsrec.commands.fit.fit_parser", lambda: parser)
        kept = {name: about for name, about in COMMANDS.items() if name != "evaluate"}
        patch.setattr("newsrec.__main__.COMMANDS", kept)
        script = completion._whole_parser().get_completion_script("shtab-bash")
    path = tmp_path_factory.mktemp("completion") / "newsrec.bash"
    path.write_text(script)
    return path


def completed(script, cwd, *words):
    """Return what bash offers for the last word."""
    code = TAB.replace("SCRIPT", str(script))
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words], capture_output=True, text=True, cwd=cwd, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_choices_presets_and_paths(light, tmp_path):
    for name in ("data", "demos"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.yaml").touch()
    assert completed(light, tmp_path, "re") == ["recommend"]
    assert completed(light, tmp_path, "prepare", "--data.r") == ["--data.root"]
    assert completed(light, tmp_path, "simulate", "--preset", "ta") == ["tastes-small", "tastes"]
    assert completed(light, tmp_path, "fit", "--config", "mind_l") == [
        name for name in presets() if name.startswith("mind_l")
    ]
    assert set(completed(light, tmp_path, "fit", "--config", "")) >= {*presets(), "mine.yaml"}
    assert completed(light, tmp_path, "fit", "--model.residual", "") == ["true", "false"]
    assert set(completed(light, tmp_path, "prepare", "--data.root", "d")) == {"data", "demos"}
    assert completed(light, tmp_path, "configs", "copy", "e") == ["ema"]


def test_every_path_of_a_command_is_completed_as_one(monkeypatch):
    """A renamed argument would silently lose its completion."""
    parsers = [completion.importlib.import_module(f"newsrec.commands.{name.replace('-', '_')}")
               for name in COMMANDS if name not in ("fit", "evaluate")]  # fmt: skip
    known = {"ckpt_path", "model.plm"}  # of fit and evaluate
    for module in parsers:
        parser = jsonargparse.ArgumentParser()
        module.add_arguments(parser)
        known |= {action.dest for action in parser._actions}
    assert {*completion.FOLDERS, *completion.FILES} <= known


def test_a_missing_shtab_is_named(monkeypatch, capsys):
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    assert 'pip install "newsrec[completion]"' in refused(capsys, "completion", "bash")
    assert "Choose from bash, zsh, fish" in refused(capsys, "completion", "basj")


@pytest.mark.slow
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_whole_script_is_valid_and_has_the_options_of_fit(shell, tmp_path, capsys):
    main(["completion", shell])
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True)
    text = path.read_text()
    assert all(name in text for name in (*COMMANDS, *presets()))
    assert "trainer.max_epochs" in text
    if shell == "bash" and shutil.which("bash"):
        options = completed(path, tmp_path, "fit", "--data.max_t")
        assert options == ["--data.max_tokens"]
        splits = completed(path, tmp_path, "evaluate", "--split", "")
        assert splits == ["train", "dev", "test", "last_day"]
