"""What runs on the device makes no float64, which MPS does not have."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from newsrec.data.datamodule import MindDataModule
from newsrec.model.residual import ResidualPath
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import adamw, parameter_groups


class NoFloat64(TorchDispatchMode):
    """Raises where an operation gives float64, as MPS does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"{func} gives float64")
        return result


def test_the_mode_finds_a_float64():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("tune_layers", [0, 1, -1])
def test_a_step_the_catalogue_and_scores_make_no_float64(mind_dir, plm_dir, tune_layers):
    data = MindDataModule(root=mind_dir, plm=str(plm_dir), batch_size=4)
    data.setup("fit")
    module = RecommenderModule(
        plm=str(plm_dir), tune_layers=tune_layers, dim=8, news={"heads": 2}, user={"heads": 2}
    )
    module.configure_model()
    groups = parameter_groups(module.recommender, 1e-4, 1e-5, 1e-2, 0.01)
    batch, evaluated = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    with NoFloat64():
        optimizer, scheduler = adamw(groups, lambda step: 1.0, fused=True)
        scores = module.recommender(batch).float().masked_fill(batch.candidates == 0, -torch.inf)
        F.cross_entropy(scores, batch.labels.argmax(dim=1)).backward()
        torch.nn.utils.clip_grad_norm_(module.recommender.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        module.eval()
        with torch.no_grad():
            vectors = encode_catalogue(module.recommender, data.catalogue)
            found = module.recommender.score(vectors, evaluated)
    assert found.isfinite().all()


def test_the_residual_path_is_fitted_in_float64_on_the_cpu_alone(monkeypatch):
    moved = []
    cpu, double = torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: moved.append("cpu") or cpu(x))
    monkeypatch.setattr(torch.Tensor, "double", lambda x: moved.append("double") or double(x))
    path = ResidualPath(6, 4)
    path.fit(torch.randn(20, 6))
    assert moved == ["cpu", "double"]
    assert path.centre.dtype == path.projection.dtype == torch.float32
