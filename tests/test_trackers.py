"""Weights & Biases and MLflow get a run's options, metrics, best checkpoint and report."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from conftest import fit_options

import newsrec
from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.report.tracking import log_report
from newsrec.training.outside_loggers import log_options, missing_package

LOGGERS = Path(__file__).parent.parent / "configs" / "logger"
OUTSIDE = {"wandb", "mlflow", "optuna"}


def imported_at_once(path):
    """Return the packages that a module imports when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(node) for function in inner for node in ast.walk(function)}
    for node in ast.walk(tree):
        if id(node) not in lazy and isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module] if isinstance(node, ast.ImportFrom) else names
            yield from (name.split(".")[0] for name in names)


def test_optional_packages_are_imported_only_where_they_are_used():
    modules = [*Path(newsrec.__file__).parent.rglob("*.py")]
    assert not [path for path in modules if OUTSIDE & set(imported_at_once(path))]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'wandb'"),
            'wandb is missing: run `pip install "news',
        ),
        (
            ModuleNotFoundError("No module named 'x.y'", name="x.y"),
            "x is missing: run `pip install x`",
        ),
        (ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met."), '"newsrec[wandb]"'),
        (ModuleNotFoundError("no", name="sqlalchemy.orm"), '"newsrec[mlflow]"'),
        (ModuleNotFoundError("odd"), "a package is missing: odd."),
    ],
)
def test_a_missing_package_is_named_with_its_command(error, said):
    outer = ValueError("cannot be built")
    outer.__context__ = error
    assert said in missing_package(outer)
    assert missing_package(ValueError("another")) is None


def test_a_tracker_that_fails_at_the_end_does_not_fail_the_run(tmp_path, caplog):
    from lightning.pytorch.loggers import MLFlowLogger

    class Gone(MLFlowLogger):
        def __init__(self):
            pass

        @property
        def experiment(self):
            raise ConnectionError("the server\nis gone")

    (tmp_path / "report.html").write_text("page")
    log_report([Gone(), object()], [tmp_path / "report.html"], tmp_path / "summary.json")
    assert "Gone did not take the report: the server is gone" in caplog.text


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("wandb.errors.errors", "set WANDB_MODE=offline"),
        ("mlflow.exceptions", "sqlite:///mlflow.db"),
    ],
)
def test_a_tracker_that_cannot_be_reached_is_a_mistake_of_the_user(module, said):
    class Logger:
        def log_hyperparams(self, options):
            raise type("Error", (Exception,), {"__module__": module})("no\nanswer.")

    with pytest.raises(UserError, match=r"--trainer\.logger: no answer\. .*" + said):
        log_options([Logger()], {})

    class Odd(Logger):
        def log_hyperparams(self, options):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        log_options([Odd()], {})


def records(folder):
    """Return all that an offline run of Weights & Biases keeps for a later upload.

    The file has the layout of LevelDB's logs: blocks of 32 KiB with parts of records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:
            at += -at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_both_trackers_get_options_metrics_checkpoint_and_report(
    mind_dir, plm_dir, tmp_path, monkeypatch, whole_runs
):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    files = [LOGGERS / f"{name}.yaml" for name in ("wandb", "mlflow")]
    both = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
    options = fit_options(mind_dir, plm_dir, "run")
    main([*options, f"--trainer.logger={json.dumps(both)}", "--trainer.log_every_n_steps=1"])
    import wandb

    wandb.finish()
    wandb.teardown()  # its process has written all when it is gone
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    kept = list(records(tmp_path))
    config = {item.key: json.loads(item.value_json) for one in kept for item in one.config.update}
    assert config["model"]["dim"] == 16
    logged = {item.nested_key[0] if item.nested_key else item.key
              for one in kept for item in one.history.item}  # fmt: skip
    assert {"train/loss", "val/auc", "trainer/global_step"} <= logged
    artifacts = {one.artifact.type: one.artifact for one in kept if one.artifact.name}
    contents = {
        kind: {entry.path for entry in one.manifest.contents} for kind, one in artifacts.items()
    }
    assert contents == {
        "model": {"model.ckpt"}, "report": {"curves.png", "report.html", "summary.json"}
    }  # fmt: skip
    assert "best" in artifacts["model"].aliases
    final = {item.key: item.value_json for one in kept for item in one.summary.update}
    assert json.loads(final["best/auc"]) == summary["auc"]

    from mlflow.tracking import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("newsrec").experiment_id])
    assert run.data.params["model/dim"] == "16"
    assert {"train/loss", "val/auc", "gate/news"} <= run.data.metrics.keys()
    assert run.data.metrics["best/auc"] == summary["auc"]
    assert run.info.status == "FINISHED"
    found = {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "best")}
    assert {"best.ckpt", "report.html", "curves.png", "summary.json"} <= found
    best = client.download_artifacts(run.info.run_id, "best/best.ckpt", str(tmp_path))
    assert Path(best).read_bytes() == Path("run/checkpoints/best.ckpt").read_bytes()
