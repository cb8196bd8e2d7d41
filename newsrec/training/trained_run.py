"""A trained model from its checkpoint, with its data and the provenance of its scores."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from newsrec.data.datamodule import MindDataModule
from newsrec.data.splits import LAST_DAY
from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.training.checkpoint.read import check_same_options, hyper_parameters, read_checkpoint
from newsrec.training.module import RecommenderModule


class TrainedRun:
    """A trained model with its data; ``TrainedRun.open`` creates one from a checkpoint."""

    def __init__(self, path: Path, checkpoint: dict[str, Any], datamodule: MindDataModule) -> None:
        self.path = path
        self.checkpoint = checkpoint
        self._datamodule = datamodule

    @classmethod
    def open(
        cls,
        ckpt_path: str | Path,
        root: str | Path | None = None,
        split: str | None = None,
        expected: Mapping[str, dict[str, Any]] | None = None,
        **data_options: Any,
    ) -> "TrainedRun":
        """Read a checkpoint; model and data are built on first use.

        ``root`` None uses the folder of the training, ``split`` None the split that chose the
        checkpoint. ``expected`` are values under ``model`` and ``data`` that the checkpoint
        must have; ``data_options`` do not affect scores. The last day of train is refused if the
        model has seen it.
        """
        checkpoint = read_checkpoint(ckpt_path)
        check_same_options(checkpoint, dict(expected or {}), ckpt_path)
        options = hyper_parameters(checkpoint, "data") | data_options
        if root is not None:
            options["root"] = str(root)
        ours = checkpoint["newsrec"]
        tokenizer_json, names = ours["tokenizer_json"], ours.get("category_names")
        datamodule = MindDataModule.as_trained(options, tokenizer_json, split, names)
        if split == LAST_DAY != datamodule.val:
            raise UserError(
                f"--split last_day: {ckpt_path} was trained with data.val {datamodule.val}, so it "
                "has seen that day. Train with --data.val last_day, or choose another split."
            )
        return cls(Path(ckpt_path), checkpoint, datamodule)

    @cached_property
    def data(self) -> MindDataModule:
        """The data module, set up with the options of the training."""
        self._datamodule.setup("predict")
        return self._datamodule

    @cached_property
    def module(self) -> RecommenderModule:
        """The model, in evaluation mode."""
        return RecommenderModule.from_checkpoint(self.checkpoint, self.path)

    def provenance(self, precision: str, by_auto: bool = False) -> dict[str, Any]:
        """Return the fields of ``metrics.json`` on the provenance of the model's scores."""
        own = self.checkpoint["newsrec"]
        windows, seen = own.get("windows", {}), own.get("data_fingerprint", {})
        splits = self.data.data.splits
        return {
            "scorer": "checkpoint",
            "selected_on": own["selected_on"],
            "selected_news": own.get("selected_news", "all"),
            "trained_on": {name: windows[name] for name in windows if name == self.data.train},
            "other_data": [
                name for name in seen if name in splits and splits[name].fingerprint != seen[name]
            ],
            "precision": precision,
            "precision_by_auto": by_auto,
            "checkpoint_sha256": file_hash(self.path),
        }
