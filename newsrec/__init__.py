"""News recommendation on MIND: Fastformer on a pretrained language model, with Lightning.

The names below are the public Python API. They are imported when they are first used, so that
``import newsrec`` is fast and needs no PyTorch::

    import newsrec as nr

    run = nr.fit(nr.RecommenderModule(), nr.MindDataModule("data/demo"), max_epochs=5)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from newsrec.api import RunFolder, fit
    from newsrec.console import show_our_messages
    from newsrec.data.datamodule import MindDataModule
    from newsrec.data.dataset import open_mind
    from newsrec.errors import (
        DataError,
        HubError,
        MissingDataError,
        MissingModelError,
        MissingPackageError,
        ModelError,
        StoreError,
        UserError,
    )
    from newsrec.export.pretrained import PretrainedRecommender
    from newsrec.frames import metrics_of_table
    from newsrec.metrics import mind_metrics
    from newsrec.model.recommender import NewsRecommender
    from newsrec.serving.batch import BatchScorer
    from newsrec.serving.recommend import Recommender
    from newsrec.simulation.simulate import simulate
    from newsrec.training.checkpoint.saving import Stopped
    from newsrec.training.module import RecommenderModule
    from newsrec.tuning.study import tune

_HOMES = {
    "BatchScorer": "serving.batch",
    "DataError": "errors",
    "HubError": "errors",
    "MindDataModule": "data.datamodule",
    "MissingDataError": "errors",
    "MissingModelError": "errors",
    "MissingPackageError": "errors",
    "ModelError": "errors",
    "NewsRecommender": "model.recommender",
    "PretrainedRecommender": "export.pretrained",
    "Recommender": "serving.recommend",
    "RecommenderModule": "training.module",
    "RunFolder": "api",
    "StoreError": "errors",
    "Stopped": "training.checkpoint.saving",
    "UserError": "errors",
    "fit": "api",
    "metrics_of_table": "frames",
    "mind_metrics": "metrics",
    "open_mind": "data.dataset",
    "show_our_messages": "console",
    "simulate": "simulation.simulate",
    "tune": "tuning.study",
}
"""Module of each public name."""
_SHARED = ("open_mind", "simulate")
"""Functions that commands also call."""

__all__ = [
    "BatchScorer",
    "DataError",
    "HubError",
    "MindDataModule",
    "MissingDataError",
    "MissingModelError",
    "MissingPackageError",
    "ModelError",
    "NewsRecommender",
    "PretrainedRecommender",
    "Recommender",
    "RecommenderModule",
    "RunFolder",
    "Stopped",
    "StoreError",
    "UserError",
    "fit",
    "metrics_of_table",
    "mind_metrics",
    "open_mind",
    "show_our_messages",
    "simulate",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'newsrec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"newsrec.{_HOMES[name]}"), name)
    if name in _SHARED:
        from newsrec.spoken import in_python

        value = in_python(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
