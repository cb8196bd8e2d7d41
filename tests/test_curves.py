import csv

import numpy as np
import pytest

from newsrec.training.callbacks import RunCsv
from newsrec.training.progress.curves import draw_curves, smooth


def plain_average(values, keep):
    """Return what ``smooth`` computes, written as weights of each point."""
    averages = []
    for i in range(len(values)):
        weights = np.array([keep ** (i - j) for j in range(i + 1)])
        averages.append(np.average(values[: i + 1], weights=weights))
    return np.array(averages)


@pytest.mark.parametrize("length", [1, 39, 41, 400])
def test_a_smoothed_curve_is_the_weighted_mean_of_what_came_before(length):
    values = np.random.default_rng(length).normal(size=length)
    expected = plain_average(values, keep=1 - min(1, 40 / length))
    np.testing.assert_allclose(smooth(values), expected)


def test_nothing_logged_is_an_empty_curve():
    assert len(smooth([])) == 0


def test_curves_are_drawn_with_and_without_a_baseline(tmp_path):
    path = tmp_path / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/auc"])
        writer.writeheader()
        writer.writerows({"step": i, "train/loss": 1 / (i + 1), "val/auc": ""} for i in range(99))
        writer.writerow({"step": 99, "train/loss": "", "val/auc": 0.6})
    pictures = []
    for baseline in (None, ("recent popularity", 0.55)):
        draw_curves(path, tmp_path / "curves.png", baseline)
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


WHOLE = "step,train/loss,val/auc\r\n9,0.7,\r\n9,,0.61\r\n19,0.6,\r\n"
TORN = [
    *(b"19,0.6,0.5", b"x,0.6,\r\n", b"9,much,\r\n", b"9\r\n"),
    *(b"\xff\0\xfe,,\r\n", b'"9,0.7,\r\n'),
]


@pytest.mark.parametrize("torn", TORN)
def test_a_run_goes_on_in_a_damaged_log_and_keeps_it(tmp_path, caplog, torn):
    path = tmp_path / "metrics.csv"
    path.write_bytes(WHOLE.encode() + torn)
    damaged = path.read_bytes()
    writer = RunCsv(tmp_path).experiment
    writer.forget_after(10, validation=False)
    assert path.read_bytes().decode() == WHOLE.replace("19,0.6,\r\n", "")
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == damaged
    assert "lines that cannot be read, left out: 1" in caplog.text
    writer.log_metrics({"val/mrr": 0.3}, 12)
    writer.save()
    assert path.read_text().splitlines()[-1] == "12,,,0.3"


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"", b"a,b\n1,2\n", b"step,step\n1,2\n"])
def test_a_run_goes_on_without_a_log_that_has_no_header(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    writer = RunCsv(tmp_path).experiment
    writer.forget_after(10, validation=False)
    writer.log_metrics({"val/mrr": 0.3}, 12)
    writer.save()
    assert path.read_text().splitlines() == ["step,val/mrr", "12,0.3"]


def test_a_log_is_whole_when_the_disk_fills_while_it_is_written_anew(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    path.write_bytes(WHOLE.encode())
    writer = RunCsv(tmp_path).experiment

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("newsrec.files.put", full)
    with pytest.raises(OSError, match="No space"):
        writer.forget_after(10, validation=False)
    writer.log_metrics({"val/mrr": 0.3}, 12)
    with pytest.raises(OSError, match="No space"):
        writer.save()
    assert path.read_bytes().decode() == WHOLE


def test_a_damaged_log_costs_the_picture_alone(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/loss\nx,1\n\xff")
    draw_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert "no curves are drawn" in caplog.text
