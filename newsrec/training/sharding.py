"""Divides the weights of the PLM over the processes (FSDP2), for encoders too large for one device.

Each layer of the PLM is sharded: a process keeps its part of the weights, gradients and optimizer
state, and gathers a whole layer only while it runs. The encoders behind the PLM are small, so each
process has them whole, and their gradients are averaged. A checkpoint is the same file as without
sharding, with whole weights, so it can be resumed on any number of processes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from newsrec.errors import UserError
from newsrec.model.plm.cut import layer_lists
from newsrec.training.checkpoint.folders import (
    is_folder,
    put_checkpoint,
    read_folder,
    remove,
    write_folder,
)
from newsrec.training.lightning_internals import shard_over_all

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""Lightning's names; with fp16 its gradient scaler would have to know of shards."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, without tensor parallelism.

    Args:
        in_parts: Whether each process writes its part of a checkpoint into a folder. Otherwise the
            first gathers the whole in the machine's memory and writes one file.
    """

    def __init__(self, in_parts: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=in_parts)
        self.in_parts = in_parts

    def setup_environment(self) -> None:
        """Form the process group.

        Raises:
            UserError: For options that do not work with shards.
        """
        _check(self.lightning_module)
        shard_over_all(self)
        super().setup_environment()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of the weights that are not sharded.

        This is also right while batches are accumulated: averaging an average changes nothing.
        """
        super().post_backward(closure_loss)
        assert self.model is not None
        average(self.model.parameters())

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights on the first process, or each process's part."""
        assert self.model is not None
        return self._on_first(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of an optimizer on the first process, or each one's part."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # of Lightning's wrapper
        return self._on_first(optimizer.state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; a folder gets its name when it is complete."""
        if not self.in_parts:
            if self.global_rank == 0:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath)
            return
        path = Path(self.broadcast(filepath))
        aside = path.with_name(f".{path.name}-new.part")
        try:
            if self.global_rank == 0:
                remove(aside)
            self.barrier()
            write_folder(aside, checkpoint, self.global_rank == 0)
            if self.global_rank == 0:
                put_checkpoint(aside, path)
        except (OSError, RuntimeError, CheckpointException) as error:
            io: Any = self.checkpoint_io
            cause = " ".join(str(error).split())[:160]
            io.failed = f"{path} could not be written ({cause}). Choose another --output."
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of any number of processes; each keeps its part of the weights."""
        path = self.broadcast(checkpoint_path)
        if is_folder(Path(path)):
            checkpoint = read_folder(Path(path))
        else:
            checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        assert self.model is not None
        load_weights(self.model, checkpoint["state_dict"])
        for optimizer, state in zip(
            self.optimizers, checkpoint.get("optimizer_states", []), strict=False
        ):
            load_optimizer(optimizer, state)
        return checkpoint

    def _on_first(self, state: dict[str, Any]) -> dict[str, Any]:
        if self.in_parts:
            return state
        gathered = whole(state)  # on all processes together
        return gathered if self.global_rank == 0 else {}


StrategyRegistry.register("fsdp2", ShardedStrategy)
StrategyRegistry.register("fsdp2_in_parts", ShardedStrategy, in_parts=True)


def _check(module: Any) -> None:
    """Refuse options that do not work with shards."""
    if any(isinstance(callback, WeightAveraging) for callback in module.trainer.callbacks):
        raise UserError(
            "trainer.callbacks: Lightning cannot average the weights of a PLM that is sharded. "
            "Leave the callback out, or choose --trainer.strategy ddp."
        )
    if module.torch_compile:
        raise UserError(
            "model.torch_compile is true, and newsrec does not compile a PLM that is sharded. Set "
            "it to false, or choose --trainer.strategy ddp."
        )
    if module.trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is {module.trainer.precision}; a PLM that is sharded trains in one "
            f"of {', '.join(PRECISIONS)}."
        )


def shard(recommender: nn.Module, mesh: Any) -> None:
    """Shard the PLM of a recommender over the processes of a device mesh."""
    encoder: Any = recommender.news_encoder
    cut = encoder.cut
    mesh = mesh["data_parallel"]
    for layers in layer_lists(cut.plm, cut.plm.config.num_hidden_layers):
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(cut.plm, mesh=mesh)
    cut.in_step = True


def whole(state: Any) -> Any:
    """Return a state dict with whole tensors on the CPU; every process calls this."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state


def part(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, sharded as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole weights into a module of which parts may be sharded."""
    own = module.state_dict()
    parts = {name: part(v, own[name]) if name in own else v for name, v in state.items()}
    module.load_state_dict(parts)


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load the whole state of an optimizer whose parameters may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    own = dict(zip(numbers, parameters, strict=True))
    parts = {
        number: {
            name: part(v, own[number]) if v.shape == own[number].shape else v
            for name, v in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def average(parameters: Iterable[Tensor]) -> None:
    """Average over all processes the gradients of weights that are not sharded, in one call.

    A weight that this process's batch does not use counts with a gradient of zeros.
    """
    own = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    if not own:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in own])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, mean in zip(own, flat.split([p.numel() for p in own]), strict=True):
        parameter.grad = mean.view_as(parameter)


def clip_shards(optimizer: Optimizer, limit: float | None, algorithm: str | None) -> None:
    """Clip gradients by the norm of all of them together, or each by its value.

    PyTorch's function cannot join sharded gradients with others.
    """
    if not limit:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = [p.grad for p in parameters if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in own]
    if algorithm == "value":
        for gradient in local:
            gradient.clamp_(-limit, limit)
        return
    total = local[0].new_zeros(2, dtype=torch.float32)  # of shards, and of whole gradients
    for gradient, here in zip(own, local, strict=True):
        total[int(not isinstance(gradient, DTensor))] += here.float().square().sum()
    torch.distributed.all_reduce(total[:1])
    factor = (limit / (total.sum().sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in local:
        gradient.mul_(factor)
