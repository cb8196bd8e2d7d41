"""Chooses which layers of a PLM are trained, and cuts the PLM in two below them."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from newsrec.errors import UserError
from newsrec.model.plm import blocks
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.masks import mask_by_padding, nothing_padded, run_plm
from newsrec.model.plm.packing import groups_of, join, pack, run_packed
from newsrec.model.sequences import Joined, Mask

NOT_WEIGHTS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Keys of a PLM's configuration that name its origin and do not affect its output."""


class CutPlm:
    """A PLM cut into its frozen bottom part and its tuned top layers.

    The states below the cut are constants, since nothing there is trained and no dropout runs: they
    may be computed once and given to ``above`` in every step.

    Args:
        plm: Any ``transformers`` encoder.
        tune_layers: Top layers that are trained; with 0, nothing is above the cut; with -1, nothing
            is below it.
    """

    in_step = False
    """Whether each call of ``last_states`` must run the PLM once, since its weights are sharded and
    all processes gather them together."""

    def __init__(self, plm: PreTrainedModel, tune_layers: int) -> None:
        self.plm = plm
        self.tune_layers = tune_layers
        self.last_token = getattr(plm.config, "sentence_pooling", "mean") == "last"
        """Whether the state of its last token stands for a text, and not the mean of its states."""
        self._top: _Top | None = None
        self._packs = pack(plm)
        if not self._packs:
            mask_by_padding(plm)
        self._lists = layer_lists(plm, tune_layers) if tune_layers not in (0, -1) else []
        self.frozen = self._freeze()
        """Modules that are entirely frozen."""

    @property
    def layers(self) -> list[nn.Module]:
        """The tuned layers of the PLM; empty if it is frozen."""
        if self.tune_layers == -1:
            lists = layer_lists(self.plm, self.plm.config.num_hidden_layers)
            return [layer for layers in lists for layer in layers]
        return [layer for layers in self._lists for layer in layers[-self.tune_layers :]]

    def below(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states that enter the tuned layers ``[news, tokens, hidden]``.

        Takes tokens and a mask that is True where they are real, both ``[news, tokens]``.
        """
        assert self.tune_layers >= 0
        with torch.no_grad():
            if not self.tune_layers:
                return run_plm(self.plm, token_ids, mask)
            return _states_into(self._lists[0][-self.tune_layers], self.plm, token_ids, mask)

    def above(self, states: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the PLM's last states, from the output of ``below`` ``[news, tokens, hidden]``.

        Only the shape of ``token_ids`` matters; ``mask`` is True where real ``[news, tokens]``.
        """
        if not self.tune_layers:
            return states
        with self._given(states) as top:
            return run_plm(top, token_ids, mask)

    def _given(self, states: Tensor) -> AbstractContextManager[PreTrainedModel]:
        self._top = self._top or _Top(self.plm, self._lists, self.tune_layers)
        return self._top.given(states)

    def last_states(
        self,
        token_ids: Tensor,
        token_lengths: Tensor,
        token_states: Tensor | None = None,
        tokens_per_pass: int | None = None,
        padded: bool = True,
    ) -> Iterator[tuple[Tensor, Mask]]:
        """Run the PLM over news sorted by length, a group of similar length at a time.

        Args:
            token_ids: Tokens, padded at the end ``[news, tokens]``.
            token_lengths: Number of real tokens, ascending, on the CPU ``[news]``.
            token_states: Joined states of the real tokens below the tuned layers; the frozen
                layers then do not run ``[tokens, hidden]``. None runs the whole PLM.
            tokens_per_pass: Padded tokens that are run at once; None depends on the device.
            padded: Whether states must be padded, also where joined ones would be faster.

        Yields:
            Last states of some news ``[rows, tokens, hidden]`` with a mask; or both joined.

        Raises:
            UserError: If the size of the states differs from this PLM's.
        """
        config = self.plm.config
        if token_states is not None and token_states.shape[1] != config.hidden_size:
            raise UserError(
                f"The states are of another PLM: their size is {token_states.shape[1]}, but that "
                f"of {config.model_type} is {config.hidden_size}. Compute them with this PLM."
            )
        if self.in_step:
            tokens_per_pass = blocks.ALL
        elif tokens_per_pass is None:
            tokens_per_pass = blocks.tokens_per_pass(token_ids.device)
        run = self._joined if self._packs else self._padded
        yield from run(token_ids, token_lengths, token_states, tokens_per_pass, padded)

    def _joined(
        self, tokens: Tensor, sizes: Tensor, given: Tensor | None, per_pass: int, padded: bool
    ) -> Iterator[tuple[Tensor, Mask]]:
        """Do what ``last_states`` does: run real tokens only."""
        for rows in blocks.runs(sizes, per_pass):
            lengths = sizes[rows]
            groups = groups_of(lengths)
            if given is None:
                ids = join(tokens[rows], groups)
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune_layers != 0):
                    states = run_packed(self.plm, ids, groups)
            else:
                below, given = given.tensor_split([int(lengths.sum())])
                states = below.to(self.plm.dtype)
                if self.tune_layers:
                    ids = torch.zeros(len(states), dtype=torch.int64, device=states.device)
                    with self._given(states[None]) as top:
                        states = run_packed(top, ids, groups)
            if padded or not blocks.runs_on_cpu(states.device):
                yield from blocks.padded_blocks(states, lengths, per_pass)
            else:
                yield states, Joined.of(lengths)

    def _padded(
        self, tokens: Tensor, sizes: Tensor, given: Tensor | None, per_pass: int, padded: bool
    ) -> Iterator[tuple[Tensor, Mask]]:
        """Do what ``last_states`` does, for a PLM family that needs padding."""
        all_lengths = sizes.to(tokens.device, non_blocking=True)
        ends = all_lengths.cumsum(0)
        spare = blocks.ALL if self.in_step else blocks.spare_tokens(tokens.device)
        for rows, longest in blocks.blocks_by_length(sizes, per_pass, spare):
            lengths, ids = all_lengths[rows], tokens[rows, :longest]
            mask = length_mask(lengths, longest)
            full = int(sizes[rows][0]) == longest  # lengths ascend, so all are equal
            if given is None:
                learns = torch.is_grad_enabled() and self.tune_layers != 0
                with torch.set_grad_enabled(learns), nothing_padded(full):
                    states = run_plm(self.plm, ids, mask)
                yield states, mask  # outside the with block, which turns gradients off
                continue
            places = torch.arange(longest, device=lengths.device).minimum(lengths[:, None] - 1)
            places += (ends[rows] - lengths)[:, None]
            with nothing_padded(full):
                states = self.above(given[places].to(self.plm.dtype), ids, mask)
            yield states, mask

    def works(self, token_ids: Tensor, mask: Tensor) -> bool:
        """Return whether running both parts in turn gives the same states as the whole PLM.

        It does not in DeBERTa, where a convolution depends on the layer's number, nor in XLM, which
        has no layer modules.
        """
        training = self.plm.training
        self.plm.eval()
        try:
            with torch.no_grad():
                whole = run_plm(self.plm, token_ids, mask)[mask]
                states = self.below(token_ids, mask)
                return torch.allclose(self.above(states, token_ids, mask)[mask], whole, 1e-3, 1e-4)
        except Exception:  # some families raise when called in this unusual way
            return False
        finally:
            self.plm.train(training)

    def key(self) -> str:
        """Return a hash of all that the states below the cut depend on: weights, config, depth."""
        config = {k: v for k, v in self.plm.config.to_dict().items() if k not in NOT_WEIGHTS}
        found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        found.update(f"tune_layers {self.tune_layers}".encode())
        tuned = {parameter for layer in self.layers for parameter in layer.parameters()}
        for name, parameter in sorted(self.plm.named_parameters()):
            if parameter not in tuned:
                found.update(f"{name} {parameter.dtype}".encode())
                values = parameter.detach().cpu().contiguous()
                found.update(values.flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _freeze(self) -> list[nn.Module]:
        if self.tune_layers == -1:
            return []
        self.plm.requires_grad_(False)
        tuned = nn.ModuleList(self.layers).requires_grad_(True)
        return self.outside(tuned) if len(tuned) else [self.plm]

    def outside(self, layers: Iterable[nn.Module]) -> list[nn.Module]:
        """Return the modules of the PLM that share no submodule with these layers."""
        inside = {module for layer in layers for module in layer.modules()}
        return [m for m in self.plm.modules() if not inside & set(m.modules())]


class _Reached(Exception):
    """Raised when the forward pass reaches a layer; carries the states that enter it."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _states_into(layer: nn.Module, plm: PreTrainedModel, token_ids: Tensor, mask: Tensor) -> Tensor:
    """Run a PLM up to a layer, and return the states that enter it ``[news, tokens, hidden]``."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    with layer.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            run_plm(plm, token_ids, mask)
        except _Reached as reached:
            return reached.states
    raise AssertionError("the PLM did not come to its layers")


class _Given(nn.Module):
    """Replaces the module that computes the first layer's input; returns given states instead."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.states


class _Top:
    """The PLM without its bottom layers, with shared weights.

    Modules around the layers or the first layer's input module are shallow copies, all others the
    PLM's own: the family's code computes masks and relative positions.
    """

    def __init__(self, plm: PreTrainedModel, lists: list[nn.ModuleList], tune_layers: int) -> None:
        self.entrance = _Given()
        replaced: dict[nn.Module, nn.Module] = {_entrance(plm, lists): self.entrance}
        replaced |= {layers: nn.ModuleList(layers[-tune_layers:]) for layers in lists}
        self.copies: list[tuple[nn.Module, nn.Module]] = []
        self.plm = self._copy(plm, replaced)

    @contextmanager
    def given(self, states: Tensor) -> Iterator[PreTrainedModel]:
        """Give the top part of the PLM, with these states as input to its first layer."""
        self.entrance.states = states
        for module, original in self.copies:
            module.training = original.training
        try:
            yield self.plm
        finally:
            del self.entrance.states

    def _copy(self, module: nn.Module, replaced: dict[nn.Module, nn.Module]) -> Any:
        """Return a module with some submodules replaced; modules that contain them are copied."""
        if module in replaced:
            return replaced[module]
        children = {
            name: child if child is None else self._copy(child, replaced)
            for name, child in module._modules.items()
        }
        if all(children[name] is child for name, child in module._modules.items()):
            return module
        same = copy.copy(module)
        same._modules = children
        self.copies.append((same, module))
        return same


def _entrance(plm: PreTrainedModel, lists: list[nn.ModuleList]) -> nn.Module:
    """Return the outermost module whose output enters the first layer, usually the embeddings."""
    made: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        made.append((module, output))

    with ExitStack() as stack, torch.no_grad():
        for module in plm.modules():
            stack.enter_context(module.register_forward_hook(note))
        token_ids = torch.zeros(1, 1, dtype=torch.int64, device=plm.device)
        states = _states_into(lists[0][0], plm, token_ids, torch.ones_like(token_ids))
    # Hooks run when a module returns, so the last module with this output is the outermost.
    return [module for module, output in made if output is states][-1]


def layer_lists(plm: PreTrainedModel, tune_layers: int) -> list[nn.ModuleList]:
    """Return the list in which a PLM keeps its layers, or several for parts of the layers.

    Raises UserError if the PLM has fewer layers than ``tune_layers``, or its layers share weights.
    """
    depth = plm.config.num_hidden_layers
    if not 0 < tune_layers <= depth:
        raise UserError(
            f"model.tune_layers is {tune_layers}; this PLM has {depth} layers. Choose 0 (frozen), "
            f"1 to {depth}, or -1 (all layers and the embeddings)."
        )
    for owner in plm.modules():  # XLM keeps a layer's parts in several lists, side by side
        lists = [m for m in owner.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if lists:
            return lists
    raise UserError(
        f"model.tune_layers is {tune_layers}, but the layers of this PLM "
        f"({plm.config.model_type}) are not separate modules. Choose 0 (frozen) or -1 (all)."
    )
