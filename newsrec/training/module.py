"""The Lightning module around the model: the training step, validation and the optimizer."""

import inspect
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, EvalBatch
from newsrec.data.states import TokenStates
from newsrec.model.plm.load import build_plm, load_plm
from newsrec.model.plm.lora import describe
from newsrec.model.recommender import NewsRecommender
from newsrec.training.callbacks import FrozenStates
from newsrec.training.catalogue import encode_catalogue, mean_states
from newsrec.training.checkpoint import contradictions
from newsrec.training.checkpoint.read import hyper_parameters, read_checkpoint
from newsrec.training.checkpoint.saving import values_beside_weights
from newsrec.training.checkpoint.schema import building, try_out
from newsrec.training.lightning_internals import clip_unscaled, mean_if_logged, total_steps
from newsrec.training.losses import LOSSES
from newsrec.training.mind_metric import MindMetric
from newsrec.training.optimizer import Schedule, adamw, parameter_groups, peak_rates
from newsrec.training.options import ModelOptions, recommender_options
from newsrec.training.processes.together import SameData
from newsrec.training.sharding import clip_shards, shard

log = logging.getLogger(__name__)


class RecommenderModule(ModelOptions, LightningModule):
    """Trains a news recommender to pick the clicked news item among skipped ones.

    Its options are those of ``ModelOptions``.
    """

    def __post_init__(self) -> None:
        LightningModule.__init__(self)
        super().__post_init__()
        # Save the attributes, not the call's arguments: they are plain values, for a checkpoint.
        values = {name: getattr(self, name) for name in inspect.signature(ModelOptions).parameters}
        for name in ("news", "user", "lora"):
            values[name] = asdict(values[name])
        self.save_hyperparameters(values, logger=False)
        self.category_names: dict[str, list[str]] | None = None
        """Categories that have a vector, from a checkpoint or the training data."""
        self._precision_by_auto = False
        self._plm_config: dict[str, Any] | None = None
        """PLM configuration from a checkpoint; the PLM is then built without looking up weights."""
        self._trained_to_read: dict[str, Any] | None = None
        """Data options from a checkpoint, so that data made with other options are refused."""
        self.recommender: NewsRecommender
        self.val_metric = MindMetric()
        self.news_vectors: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Refuse a data module that contradicts the checkpoint of this model."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            trained = self._trained_to_read or contradictions.untrained(self, data)
            contradictions.check_agreement(trained, data)
            if stage == "fit" and self._trained_to_read is None:
                self.category_names = contradictions.categories_of(data)
            data.category_names = self.category_names
            if stage == "fit":
                contradictions.check_batches(self.loss, data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a data module that contradicts the checkpoint that the Trainer loads."""
        if "newsrec" in checkpoint:
            contradictions.check_categories(checkpoint, self.category_names)
            self._trained_to_read = contradictions.remembered(checkpoint)
            self.setup("")

    def settle_precision(self, precision: str, by_auto: bool) -> None:
        """Set the option ``precision`` to the precision of this run; checkpoints store it.

        Args:
            precision: fp32 or bf16.
            by_auto: Whether ``auto`` chose the precision, so that a resumed run keeps it.
        """
        self.precision = self.hparams["precision"] = precision
        self._precision_by_auto = by_auto

    def configure_callbacks(self) -> list[Callback]:
        """Return what training needs under any Trainer: the same data everywhere, kept states."""
        trainer: Any = self.trainer
        present = {type(callback) for callback in trainer.callbacks}  # if it has run before
        return [kind() for kind in (SameData, FrozenStates) if kind not in present]

    def configure_model(self) -> None:
        """Build the model; called after all other checks have passed."""
        if hasattr(self, "recommender"):
            return
        # cuDNN's attention makes a plan for each new shape, in some 10 ms; titles have many shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
        stored = self._plm_config
        plm = build_plm(stored) if stored else load_plm(self.plm, self.plm_layers)
        self.recommender = NewsRecommender(plm, **recommender_options(self))
        if self.device_mesh is not None:
            shard(self.recommender, self.device_mesh)

    def on_train_start(self) -> None:
        """Compile the model if ``torch_compile`` is set; scoring runs uncompiled."""
        if self.torch_compile:
            self.recommender.compile_parts()

    def on_fit_start(self) -> None:
        """Fit the residual path to the training news; the result is the same on every process.

        A resumed run has a fitted path already.
        """
        encoder = self.recommender.news_encoder
        if encoder.residual is None or encoder.residual.fitted:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        encoder.eval()
        place = self.trainer.global_rank, self.trainer.world_size  # the processes share the work
        means = mean_states(encoder.cut, data.catalogue, data.states, *place)
        encoder.train()
        encoder.fit_residual(
            data.catalogue.of_titles(means)[FIRST_NEWS:], data.catalogue.of_abstracts(means)
        )
        for part in filter(None, (encoder.residual, encoder.views)):
            state = {name: value.cpu() for name, value in part.state_dict().items()}
            part.load_state_dict(self.trainer.strategy.broadcast(state))

    def forward(self, batch: Batch) -> Tensor:
        """Return raw scores of a training batch ``[batch, candidates]``."""
        return self.recommender(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from (seed, epoch, batch, process) only, so a resumed run draws the same.

        A checkpoint then needs no generator states, neither its own nor those of other processes.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        place = [data.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = LOSSES[self.loss](self.recommender.encode(batch), batch)
        # Not prog_bar: Lightning would read the loss in every step and wait for the device.
        logged = mean_if_logged(self, loss.detach())
        self.log("train/loss", logged, batch_size=len(batch.labels))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the learned numbers of the residual path and of the head."""
        for name, value in self.recommender.gates().items():
            self.log(f"gate/{name}", value)

    def on_validation_epoch_start(self) -> None:
        """Encode every news item once."""
        self.encode_news()

    on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Add a batch's impressions to the metrics."""
        assert self.news_vectors is not None
        assert batch.labels is not None
        self.val_metric.update(
            self.recommender.score(self.news_vectors, batch), batch.labels, batch.offsets
        )

    def on_validation_epoch_end(self) -> None:
        """Log MIND's metrics over all processes."""
        for name, value in self.val_metric.compute().items():
            # Every process has the same value; sync_dist only avoids a warning of Lightning.
            self.log(f"val/{name}", value.float(), prog_bar=name == "auc", sync_dist=True)
        self.val_metric.reset()
        self.news_vectors = None

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        """Return the scores of a batch's candidates ``[candidates]``."""
        assert self.news_vectors is not None
        return self.recommender.score(self.news_vectors, batch)

    def encode_news(self) -> Tensor:
        """Encode the data module's catalogue, in the Trainer's precision ``[news, dim]``."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        states: TokenStates | None = data.states
        if states is not None and len(states.lengths) < len(data.catalogue.first):
            states = None  # these states are of the training news only
        with self.trainer.precision_plugin.forward_context():
            self.news_vectors = encode_catalogue(
                self.recommender,
                data.catalogue,
                states,
                self.trainer.global_rank,
                self.trainer.world_size,
            )
        return self.news_vectors

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what ``load_from_checkpoint`` needs; values that a callback has added stay."""
        auto_precision = self.precision if self._precision_by_auto else None
        values = values_beside_weights(self, auto_precision)
        checkpoint["newsrec"] = values | checkpoint.get("newsrec", {})

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu"
    ) -> "RecommenderModule":
        """Rebuild a trained model, including its PLM, from only its checkpoint.

        Args:
            checkpoint_path: A file that ``newsrec fit`` wrote.
            map_location: Device to load to.

        Raises:
            UserError: If there is no such file, or ``newsrec fit`` did not write it.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        return cls.from_checkpoint(checkpoint, checkpoint_path).to(map_location)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: dict[str, Any], path: str | Path | None = None
    ) -> "RecommenderModule":
        """Rebuild a trained model from the result of ``read_checkpoint``.

        Args:
            checkpoint: Content of the checkpoint.
            path: File of the checkpoint, named in messages.

        Raises:
            UserError: If no model can be built from the content.
        """
        with building(path):
            module = cls.without_weights(checkpoint)
            module.load_state_dict(checkpoint["state_dict"])
            module.eval()
            try_out(module.recommender)
        return module

    @classmethod
    def without_weights(cls, checkpoint: dict[str, Any]) -> "RecommenderModule":
        """Build the model of a checkpoint without loading its weights."""
        module = cls(**hyper_parameters(checkpoint, "model"))
        module._plm_config = checkpoint["newsrec"]["plm_config"]
        module._trained_to_read = contradictions.remembered(checkpoint)
        module.category_names = checkpoint["newsrec"].get("category_names")
        module.configure_model()
        return module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a learning rate that changes after every step; log the schedule."""
        rates = self.lr, self.plm_lr, self.gate_lr, self.weight_decay, self.lora.learning_rate
        groups = parameter_groups(self.recommender, *rates)
        schedule = Schedule(self.schedule, self.warmup, total_steps(self.trainer))
        # The fused kernel would unscale fp16 gradients itself, after clipping.
        fused = self.trainer.precision != "16-mixed"
        peak = peak_rates(groups)
        log.info("learning rate: %s; at its peak %s", schedule.describe(), peak)
        if self.lora.rank:
            log.info("model.lora: %s", describe(self.recommender.news_encoder.cut, self.lora))
        optimizer, scheduler = adamw(groups, schedule, fused)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as the Trainer's options say, also for a fused optimizer under bf16."""
        options = gradient_clip_val, gradient_clip_algorithm
        if self.device_mesh is not None:
            return clip_shards(optimizer, *options)
        if not clip_unscaled(self.trainer.precision_plugin, optimizer, *options):
            super().configure_gradient_clipping(optimizer, *options)
