import importlib
import re
from pathlib import Path

import jsonargparse
import pytest
import yaml

from newsrec.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_builds(path, plm_dir, monkeypatch, tmp_path):
    from newsrec.commands.fit import FitCLI, cli_options

    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    monkeypatch.setattr("sys.argv", ["newsrec"])
    args = ["--config", str(path), "--model.plm", str(plm_dir), "--trainer.precision", "32-true"]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    args += ["--model.plm_layers", "null"]  # this PLM has two
    if path.stem == "mind_small_best":
        args += ["--model.tune_layers", "2"]
    args += ["--model.residual", "false"]  # this PLM's states are smaller than any news vector
    cli = FitCLI(args=args, **cli_options(run=False))
    cli.model.configure_model()
    assert cli.datamodule.plm == str(plm_dir)
    assert 0 < cli.trainer.max_epochs <= 20 or cli.trainer.max_steps > 0
    assert cli.model.max_history == cli.datamodule.max_history


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_opens_with_its_command(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = r"python -m newsrec fit (--config configs/\w+.yaml )?--config configs/" + path.name
    assert any(re.search(command, line) for line in head)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("trainer/*.yaml")), ids=lambda path: path.stem)
def test_every_trainer_takes_its_file(path, plm_dir, monkeypatch, tmp_path):
    from newsrec.commands.fit import FitCLI, cli_options

    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    monkeypatch.setattr("sys.argv", ["newsrec"])
    monkeypatch.setenv("SLURM_NNODES", "3")
    args = ["--config", str(CONFIGS / "demo.yaml"), "--trainer", str(path), "--model.plm"]
    args += [str(plm_dir), "--model.residual", "false"]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    cli = FitCLI(args=args, **cli_options(run=False))
    assert cli.trainer.num_nodes == (3 if path.stem == "multinode" else 1)


def test_every_group_file_is_plain_yaml():
    for path in CONFIGS.glob("*/*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


class Absent(str):
    """What Lightning keeps of a package that is not installed: its words, and false."""

    def __bool__(self):
        return False


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_names_it(name, plm_dir, tmp_path, capsys, monkeypatch):
    module = importlib.import_module(f"lightning.pytorch.loggers.{name}")
    absent = Absent(f"No module named '{name}'")
    monkeypatch.setattr(module, f"_{name.upper()}_AVAILABLE", absent)
    options = ["fit", f"--config={CONFIGS / 'demo.yaml'}", f"--model.plm={plm_dir}"]
    options += [
        f"--trainer.logger={CONFIGS / 'logger' / name}.yaml",
        f"--output={tmp_path / 'run'}",
    ]
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert f'run `pip install "newsrec[{name}]"`' in capsys.readouterr().err


def test_print_config_prints_what_fit_takes_again(plm_dir, tmp_path, capsys):
    from newsrec.commands.tune import Options

    given = [f"--config={CONFIGS / 'demo.yaml'}", f"--model.plm={plm_dir}", "--model.user.heads=4"]
    given += ["--data.max_history=30", "--trainer.callbacks=LearningRateFinder"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *given, "--print_config"])
    assert stop.value.code == 0
    printed = tmp_path / "all.yaml"
    printed.write_text(capsys.readouterr().out)
    assert yaml.safe_load(printed.read_text())["model"]["user"]["heads"] == 4
    direct, again = Options(given), Options([f"--config={printed}"])
    assert again.plain() == direct.plain()
    assert again["model.max_history"] == 30
