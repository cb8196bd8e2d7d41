import csv

import numpy as np
import pytest

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
