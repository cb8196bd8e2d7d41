import json
from importlib.metadata import PackageNotFoundError

import pytest

from newsrec.__main__ import main
from newsrec.report import doctor
from newsrec.training.hardware import precision
from newsrec.training.hardware.probe import Rates

RATES = Rates(2e11, 4e11, 2.0)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """What the machine is measured to do, and no measurement of an earlier run."""
    kept = {}

    def recall(key, names):
        return {name: kept[key][name] for name in names} if key in kept else None

    monkeypatch.setattr(precision, "recall", recall)
    monkeypatch.setattr(precision, "remember", kept.__setitem__)
    monkeypatch.setattr(precision, "measure", lambda shapes, device: RATES)


def ask(capsys, *options):
    """Run the command; return its exit code and its output."""
    code = 0
    try:
        main(["doctor", *map(str, options)])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


def test_a_sound_machine_is_described_on_one_screen(plm_dir, capsys):
    code, shown = ask(capsys, "--model.plm", plm_dir)
    assert code == 0
    lines = shown.splitlines()
    assert len(lines) <= 30
    assert all(len(line) <= 100 or " " not in line[11:] for line in lines)
    assert "bf16: matrix products of this model reach 400 GFLOP/s in bf16 and 200 in fp32" in shown
    assert f"{plm_dir}: folder" in " ".join(shown.split())
    assert shown.endswith("You can run `python -m newsrec fit --config demo`.\n")


def test_json_has_plain_values(plm_dir, capsys):
    code, shown = ask(capsys, "--model.plm", plm_dir, "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["problems"] == []
    assert found["precision"]["choice"] == precision.decide(RATES) == "bf16"
    assert (found["precision"]["fp32"], found["precision"]["bf16"]) == RATES[:2]
    assert found["packages"]["torch"]["version"] == __import__("torch").__version__
    assert found["plm"]["source"] == "folder"


def test_a_missing_package_makes_fit_impossible(monkeypatch, capsys):
    real = doctor.version

    def version(name):
        if name in ("lightning", "onnxscript"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    code, shown = ask(capsys)
    assert code == 1
    assert "lightning is missing: run `pip install 'lightning" in " ".join(shown.split())
    assert 'without export (onnxscript): pip install "newsrec[export]"' in shown
    assert "demo (onnxscript)" in shown  # which includes the extra export
    assert "Nothing is in the way" not in shown


def test_a_package_that_cannot_be_imported_is_a_finding(monkeypatch):
    def broken(name):
        raise OSError(f"lib{name}.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "find_plm", pytest.fail)  # nothing else is imported then
    found = doctor.examine()
    assert found["broken"] == list(doctor.TRIED)
    assert found["problems"][0].startswith("torch cannot be imported (libtorch.so: cannot open")
    assert dict(doctor.lines(found)).keys() >= {"newsrec", "Python", "packages", "problem"}


def test_a_version_out_of_bounds_is_noted(monkeypatch, plm_dir, capsys):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "pandas" else real(name))
    code, shown = ask(capsys, "--model.plm", plm_dir)
    assert code == 0
    assert "pandas is 1.0, and newsrec needs >=" in shown


def test_a_plm_that_is_neither_here_nor_allowed_to_come(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, shown = ask(capsys, "--model.plm", "nobody/nothing", "--json")
    found = json.loads(shown)
    assert code == 1
    assert found["plm"] == {"name": "nobody/nothing", "source": None}
    assert "HF_HUB_OFFLINE forbids to download it" in found["problems"][0]
    assert found["precision"]["choice"] == "bf16"  # measured with the shapes of the default PLM
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    code, shown = ask(capsys, "--model.plm", "nobody/nothing")
    assert code == 0
    assert "nobody/nothing: is not here; fit downloads it" in shown
    assert "has no config.json" in " ".join(ask(capsys, "--model.plm", tmp_path)[1].split())


def test_a_full_disk_is_a_problem(monkeypatch, plm_dir):
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    problems = doctor.examine(str(plm_dir))["problems"]
    assert "has 1 MiB free. Free some space, or name an --output on another disk." in problems[0]
    assert "set XDG_CACHE_HOME" in problems[1]


@pytest.mark.parametrize(
    ("number", "shown"), [(None, "unknown"), (0, "0 KiB"), (2**21, "2 MiB"), (3 * 2**29, "1.5 GiB")]
)
def test_bytes_have_a_unit(number, shown):
    assert doctor._bytes(number) == shown
