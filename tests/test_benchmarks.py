"""The benchmarks run, and their references give what ours gives; how fast is not asserted."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from conftest import fit_options

from newsrec.__main__ import main
from newsrec.data.readers.to_parquet import mind_to_parquet
from newsrec.training.losses import LOSSES

BENCHMARKS = Path(__file__).parent / "benchmarks"
DEMO = Path(__file__).parents[1] / "data" / "demo"


def measure(monkeypatch, capsys, name, *options):
    """Run a benchmark in this process and return what it printed."""
    path = BENCHMARKS / name
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    runpy.run_path(str(path), run_name="__main__")
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def demo(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns(".newsrec"))


@pytest.mark.slow
def test_feed_gives_the_content_of_its_reference(monkeypatch, capsys, demo):
    options = ("--workers", "0", "--passes", "1", "--reference_batches", "4")
    result = measure(monkeypatch, capsys, "feed.py", f"--data.root={demo}", *options)
    assert result["reference"]["equal_batches"] == 4


@pytest.mark.slow
def test_prepare_reads_what_its_reference_reads(monkeypatch, capsys, demo):
    result = measure(monkeypatch, capsys, "prepare.py", f"--data.root={demo}")
    assert result["impressions"] == 2000


@pytest.mark.slow
def test_parts_are_compared_byte_by_byte(monkeypatch, capsys, demo, tmp_path):
    mind_to_parquet(demo, tmp_path / "parquet")
    (tmp_path / "parquet" / ".newsrec").mkdir()
    options = (f"--data.root={tmp_path / 'parquet'}", "--ways", "one process", "--jobs 2")
    result = measure(monkeypatch, capsys, "parts.py", *options)
    assert result["impressions"] == 2000
    assert (tmp_path / "parquet" / ".newsrec").is_dir()  # may have states that took hours


@pytest.mark.slow
def test_what_a_process_holds_of_the_data_is_measured(monkeypatch, capsys, demo):
    result = measure(monkeypatch, capsys, "shares.py", f"--data.root={demo}", "--processes=1")
    assert result["own"]["evaluate: order"][0] == pytest.approx(8, abs=1)
    for command in ("fit", "evaluate"):
        (share,) = result[f"mapped, {command}"]["candidate_values.npy"]
        assert share > 0.2


@pytest.mark.slow
def test_parquet_gives_the_arrays_of_tsv_and_of_pandas(monkeypatch, capsys, demo):
    result = measure(monkeypatch, capsys, "parquet.py", f"--data.root={demo}", "--rounds", "1")
    assert result["impressions"] == result["pandas"]["rows"] == 2000


@pytest.mark.slow
def test_the_service_is_loaded_and_loses_no_request(monkeypatch, capsys, served):
    parts = ("--parts", "latency", "day", "memory", "--seconds=.3", "--day_seconds=1")
    options = (f"--export={served.export}", "--news=500", "--requests=200", *parts)
    result = measure(monkeypatch, capsys, "serve.py", *options)
    assert result["news"] == 500
    assert result["day"]["failed"] == 0
    assert result["memory"]["requests"] >= 200
    for part in ("recommend", "echo"):
        assert all(result[part][clients]["per_second"] > 0 for clients in ("1", "8", "64"))


@pytest.mark.slow
def test_the_start_of_fit_is_timed_by_phase(monkeypatch, capsys, demo):
    config = DEMO.parents[1] / "configs" / "demo.yaml"
    options = (f"--data.root={demo}", f"--config={config}")
    result = measure(monkeypatch, capsys, "first_step.py", *options)
    first, second = result["first_run"], result["second_run"]
    assert list(first["phases"]) == list(second["phases"])
    assert [*first["phases"]][-4:] == ["model", "states", "residual_path", "first_batch"]
    assert first["to_first_step_s"] == pytest.approx(
        sum(phase["s"] for phase in first["phases"].values()), abs=0.1
    )
    computed, read = (run["phases"]["states"]["cpu_s"] for run in (first, second))
    assert read < computed / 2
    assert first["step_s"] > 0


def test_submissions_are_written_and_checked_as_a_loop_does(monkeypatch, capsys):
    result = measure(monkeypatch, capsys, "submission.py", "--impressions", "2000")
    assert result["reference"]["impressions"] == 2000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--impressions=0",), "--impressions is 0; it must be at least 1"),
        (("--data.root=none",), "none is not a folder."),
        ((f"--data.root={DEMO}", "--split=none"), "has train, dev, test. Choose one of these."),
    ],
)
def test_evaluate_says_what_is_wrong_with_its_options(monkeypatch, capsys, options, said):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCHMARKS / "evaluate.py"), run_name="__main__")
    assert stop.value.code == 2
    found = capsys.readouterr().err
    assert "evaluate.py: error: " in found
    assert said in found


def test_the_metrics_are_those_of_a_loop(monkeypatch, capsys):
    result = measure(monkeypatch, capsys, "evaluate.py", "--impressions", "300")
    assert result["metrics"]["reference"]["equal_impressions"] == 300
    assert "model" not in result


def test_each_way_to_make_scores_is_timed_and_gives_numpys(monkeypatch, capsys):
    options = ("--impressions", "30", "--news", "50", "--catalogue", "40", "--calls", "2")
    result = measure(monkeypatch, capsys, "matching.py", *options)
    assert result["dot"]["times_dot"] == 1.0
    assert min(result[head]["recommend_ms"] for head in ("dot", "late", "interests")) > 0


@pytest.mark.slow
def test_a_step_of_each_loss_is_measured(monkeypatch, capsys, demo):
    result = measure(monkeypatch, capsys, "losses.py", f"--data.root={demo}", "--steps=2")
    assert all(result[loss]["step_ms"] > 0 for loss in LOSSES)
    assert result["impression"]["candidates"] > result["cross_entropy"]["candidates"] == 5


@pytest.mark.slow
def test_the_gpu_benchmark_can_be_rehearsed_on_a_cpu(monkeypatch, capsys, demo):
    options = ("--device", "cpu", "--cases", "tiny", "--steps", "5", "--precision", "fp32")
    result = measure(monkeypatch, capsys, "gpu.py", f"--data.root={demo}", *options)
    case = result["cases"]["tiny"]
    assert case["clicks_per_s"] > 0
    assert case["compute_share"] > 0
    assert "mfu" not in case


@pytest.mark.slow
def test_recommending_is_timed_and_gives_what_sorting_gives(monkeypatch, capsys):
    options = ("--users", "20", "--news", "300", "--calls", "20")
    result = measure(monkeypatch, capsys, "recommend.py", *options)
    assert result["equal_to_sorting"] == 100
    assert result["user_vector"]["p50_ms"] <= result["user_vector"]["p99_ms"]
    assert result["start_process"]["cpu_s"] > 0
    assert result["many_process"]["users"] == 20
    assert result["many_process"]["peak_mb_of_process"] < 3000


@pytest.mark.slow
def test_the_index_is_timed_beside_the_exact_search(monkeypatch, capsys, tmp_path):
    figure = tmp_path / "index.png"
    options = ("--sizes", "2000", "4000", f"--figure={figure}")
    result = measure(monkeypatch, capsys, "index.py", *options)
    small, large, computed = result["sizes"]
    assert (small["news"], large["news"], computed["news"]) == (2000, 4000, 5_000_000)
    assert min(small["recall_at_100"], large["recall_at_100"]) > 0.98
    assert small["removed_found"] == large["removed_found"] == 0
    assert computed["exact_ms"] > 0
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_methods_of_explaining_are_compared(monkeypatch, capsys, served):
    options = (str(served.export), f"--data.root={served.without_test}", "--users=3")
    methods = measure(monkeypatch, capsys, "explain.py", *options)["methods"]
    assert methods["shapley"]["unaccounted"] == pytest.approx(0, abs=1e-3)
    assert methods["leave-one-out"]["top_click_correlation"] == pytest.approx(1, abs=1e-3)
    assert methods["leave-one-out"]["top_click_error"] == pytest.approx(0, abs=1e-3)
    assert methods["shapley"]["runs"] == 198


@pytest.mark.slow
def test_a_model_that_scores_a_split_is_timed(monkeypatch, capsys, demo):
    options = ("--impressions", "300", f"--data.root={demo}")
    model = measure(monkeypatch, capsys, "evaluate.py", *options)["model"]
    assert model["impressions"] == 500
    assert model["after_news_s"] == pytest.approx(model["scores_s"] + model["metrics_s"], abs=0.1)


@pytest.mark.slow
def test_the_ablation_trains_scores_and_compares(monkeypatch, capsys, demo, tmp_path):
    output = tmp_path / "ablation"
    options = ("--arms", "base", "no-residual", "--seeds", "0", "--steps", "2", "--jobs", "1")
    options += (f"--data.root={demo}", f"--output={output}")
    found = measure(monkeypatch, capsys, "ablation.py", *options)
    arms = found["arms"]
    # With closed gates: the cosine centred on train's news, which numpy puts at .6233.
    assert abs(arms["base"]["gates_at_zero"] - 0.6233) < 0.01
    assert set(arms["base"]) & {"train", "dev", "test"} == {"dev"}  # test has no labels
    assert arms["no-residual"]["difference_to"]["base"]["dev"]["auc"] == pytest.approx(
        arms["no-residual"]["dev"]["auc"] - arms["base"]["dev"]["auc"]
    )
    assert 100 < arms["base"]["memory_mib"] < 10_000
    assert found["bounds"]["best baseline, recent"]["dev"] == pytest.approx(0.6303, abs=1e-4)
    assert found["bounds"]["ceiling"]["dev"] == pytest.approx(0.7985, abs=1e-4)
    assert "| no-residual | `model.residual=false` |" in (output / "table.md").read_text()
    assert measure(monkeypatch, capsys, "ablation.py", *options)["arms"] == arms  # nothing anew


@pytest.mark.slow
def test_a_training_step_gives_the_loss_of_encoding_every_appearance(monkeypatch, capsys, demo):
    arms = ("full-fp32", "top2-bf16", "lora8-fp32")
    options = ("--plm_config", "tiny", "--batches", "random:8", "--steps", "1", "--arms", *arms)
    result = measure(monkeypatch, capsys, "train.py", f"--data.root={demo}", *options)
    assert isinstance(result["hardware"]["native_bf16"], bool)
    counts = result["random:8"]["batch"]
    assert counts["distinct_news"] < counts["reference_news"]
    assert counts["real_tokens"] < counts["reference_tokens"]
    found = result["random:8"]["arms"]
    assert set(found) == {"reference", *arms}
    for name in arms:
        tolerance = result["tolerance_of_losses"][name[-4:]]
        assert found[name]["losses"] == pytest.approx(found["reference"]["losses"], abs=tolerance)
        assert found[name]["clicks_per_second"] > 0
        assert found[name]["faster_than_reference"] > 0
        assert found[name]["plm"]["share_of_matmul_rate"] > 0
        assert found[name]["peak_memory_mb"] > 0
        assert found[name]["mind_large_epoch_hours"] > 0


@pytest.mark.slow
def test_rules_for_unknown_candidates_are_compared(
    monkeypatch, capsys, mind_dir, plm_dir, tmp_path
):
    main([*fit_options(mind_dir, plm_dir, tmp_path / "run"), "--trainer.max_epochs=1"])
    capsys.readouterr()
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    options = (f"--ckpt_path={best}", f"--data.root={mind_dir}", "--share=.1", "--draws=3")
    result = measure(monkeypatch, capsys, "unknown.py", *options)
    assert 0 < result["share of candidates unknown"] < 0.3
    assert result["impressions with an unknown candidate"] > 0
    assert len(result["rules"]) == 11
    assert result["rules"]["mean news vector"]["gain there"] == [0, 0, 0]
    assert result["rules"]["first"]["auc"] != result["rules"]["last"]["auc"]


@pytest.mark.slow
def test_the_table_of_all_parts_is_written(monkeypatch, capsys, tmp_path):
    options = ("--only", "submission", "--rounds=1", f"--output={tmp_path}")
    monkeypatch.setattr(sys, "argv", ["all.py", *options])
    runpy.run_path(str(BENCHMARKS / "all.py"), run_name="__main__")
    table = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| impressions into prediction.zip |" in capsys.readouterr().out
    (row, _) = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"]
    assert row["value"] == row["rounds"][0][0] > 0
    assert f"| {row['figure']} | {row['value']:,.4g} /s |" in table


def test_a_ratio_above_1_says_that_this_tree_is_better(tmp_path):
    table = runpy.run_path(str(BENCHMARKS / "all.py"))
    time, rate = table["Figure"]("time", "a", "ms"), table["Figure"]("rate", "*.arms.b", "/s", True)
    faster = table["row_of"]("part", time, [[2.0, 2.2], [4.0, 5.0]], 10.0)
    assert faster["ratio"] == pytest.approx((4 / 2 + 5 / 2.2) / 2, abs=1e-3)
    assert faster["noise"] == 1.25
    assert faster["per_gflops"] is None
    slower = table["row_of"]("part", rate, [[100.0, 50.0], [400.0, None]], 10.0)
    assert (slower["ratio"], slower["noise"], slower["per_gflops"]) == (0.25, 2.0, 7.5)
    assert table["row_of"]("part", rate, [[100.0]], 10.0)["ratio"] is None
    assert table["value_at"]({"x": 1, "y": {"arms": {"b": 3}}}, "*.arms.b") == 3
    assert table["value_at"]({"y": {"arms": {}}}, "*.arms.b.c") is None
    table["draw"]([faster | {"figure": "<one>"}, slower], tmp_path / "a.png", "v1")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.slow
def test_metrics_beyond_accuracy_are_timed_and_compared_with_a_loop(monkeypatch, capsys):
    options = ("--impressions=3000", "--news=900", "--dim=8")
    result = measure(monkeypatch, capsys, "beyond.py", *options)
    assert result["metrics"] == 22
    assert result["compared_with_a_loop"] == 500
    found = measure(monkeypatch, capsys, "beyond.py", "--trade_off", *options)
    assert found["measured"] == 3000
    assert found["cpu_s"] > 0


@pytest.mark.slow
def test_joined_stacks_give_the_losses_of_padded_ones(monkeypatch, capsys, demo):
    options = f"--data.root={demo}", "--steps", "1", "--rounds", "1", "--batch_size", "8"
    result = measure(monkeypatch, capsys, "fastformer.py", *options)
    assert max(result["differences"].values()) < 1e-5
    for way in ("padded", "joined"):
        assert result[way]["step_ms"] > 0
        assert sum(result[way]["parts"].values()) == pytest.approx(1, abs=0.01)
