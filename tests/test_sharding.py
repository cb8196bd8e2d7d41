"""The PLM's weights divided over processes (FSDP2): the same training as on one."""

import csv
import os

import pytest
import torch
import warm
from test_processes import torchrun
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from newsrec.__main__ import main
from newsrec.model.plm.load import load_plm
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.recommender import NewsRecommender
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.optimizer import adamw, parameter_groups
from newsrec.training.sharding import clip_shards, load_optimizer, load_weights, shard, whole

LENGTHS = torch.tensor([2, 3, 3, 5])


@pytest.fixture(scope="module")
def mesh():
    """A group of this process alone, which shards as many do."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        distributed.destroy_process_group()


def tiny(plm_dir, tune_layers=-1, rank=0, recompute=False):
    torch.manual_seed(1)
    tiny = {"heads": 2, "ffn": 16, "dropout": 0.0}
    model = NewsRecommender(
        load_plm(str(plm_dir)), 16, tune_layers, tiny, tiny, 12, 5,
        checkpoint_activations=recompute, lora=LoraConfig(rank=rank),
    )  # fmt: skip
    torch.nn.init.ones_(model.news_encoder.gate)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def steps(model, lr=1e-3, limit=0.05, number=3):
    """Train on one batch; return the losses and the optimizer."""
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(5, 60, (6, 5), generator=generator)
    lengths = torch.cat([torch.zeros(2, dtype=torch.int64), LENGTHS])
    history, candidates = torch.tensor([[2, 3], [4, 0]]), torch.tensor([[3, 4], [2, 5]])
    optimizer, _ = adamw(parameter_groups(model, 1e-3, lr, 1e-2, 0.01), lambda step: 1.0, True)
    losses = []
    for _ in range(number):
        news = model.encode_news(token_ids, lengths)
        users = model.users(news, history).vectors[:, 0]
        scores = (users[:, None] * news[candidates]).sum(2) * 10
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        if any(isinstance(p, torch.distributed.tensor.DTensor) for p in model.parameters()):
            clip_shards(optimizer, limit, "norm")
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


@pytest.mark.parametrize(
    "options",
    [{}, {"tune_layers": 1}, {"rank": 2, "recompute": True}],
    ids=["all", "top", "adapters, recomputed"],
)
def test_a_sharded_plm_trains_as_a_whole_one(plm_dir, mesh, options):
    plain, sharded = tiny(plm_dir, **options), tiny(plm_dir, **options)
    shard(sharded, {"data_parallel": mesh["data_parallel"]})
    lr = 1e-3 if not options else 1e-2  # once a group with shards and whole weights
    expected, optimizer = steps(plain, lr)
    found, other = steps(sharded, lr)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[-1] < found[0]
    weights = whole(sharded.state_dict())
    torch.testing.assert_close(weights, dict(plain.state_dict()), atol=1e-5, rtol=0)
    state = whole(other.state_dict())
    assert [g["params"] for g in state["param_groups"]] == [
        g["params"] for g in optimizer.state_dict()["param_groups"]
    ]
    torch.testing.assert_close(state["state"], optimizer.state_dict()["state"], atol=1e-5, rtol=0)


def test_weights_and_optimizer_move_between_whole_and_sharded_models(plm_dir, mesh):
    plain, sharded = tiny(plm_dir), tiny(plm_dir)
    _, optimizer = steps(plain)
    shard(sharded, mesh)
    _, other = steps(sharded, number=1)
    load_weights(sharded, plain.state_dict())
    load_optimizer(other, optimizer.state_dict())
    assert whole(other.state_dict())["state"][3]["exp_avg"].equal(
        optimizer.state_dict()["state"][3]["exp_avg"]
    )
    for name, value in whole(sharded.state_dict()).items():
        assert value.equal(plain.state_dict()[name]), name
    again = tiny(plm_dir)
    load_weights(again, whole(sharded.state_dict()))
    assert all(v.equal(plain.state_dict()[n]) for n, v in again.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(sharded, {})


def test_values_of_gradients_are_clipped(plm_dir, mesh):
    model = tiny(plm_dir)
    shard(model, mesh)
    _, optimizer = steps(model, limit=0.0, number=1)
    clip_shards(optimizer, 1e-4, "value")
    largest = [whole(p.grad.abs().max()) for p in model.parameters() if p.grad is not None]
    assert max(largest) == pytest.approx(1e-4)


OPTIONS = [
    "--model.dim=16", "--model.tune_layers=-1", "--model.plm_lr=1e-3", "--model.warmup=0",
    "--model.checkpoint_activations=true", "--model.schedule=constant",
    "--model.news={heads: 2, ffn: 16, dropout: 0.0}",
    "--model.user={heads: 2, ffn: 16, dropout: 0.0, positions: recency}",
    "--data.max_tokens=12", "--data.num_workers=0", "--model.precision=fp32", "--threads=1",
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.gradient_clip_val=0.1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--baselines=false", "--trainer.limit_train_batches=4",
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_each_other(mind_dir, plm_copy, tmp_path):
    config = (plm_copy / "config.json").read_text()
    (plm_copy / "config.json").write_text(config.replace('_prob": 0.1', '_prob": 0.0'))
    fit = ["fit", f"--data.root={mind_dir}", f"--model.plm={plm_copy}", *OPTIONS]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--data.batch_size=8"]
    two = ["--trainer.devices=2", "--trainer.strategy=fsdp2", "--data.batch_size=4"]
    parts = [*two, "--trainer.strategy=fsdp2_in_parts"]
    for name, how in (("one", one), ("two", parts)):
        run([*fit, *how, "--trainer.max_epochs=1", f"--output={tmp_path / name}"], how is parts)
    assert (tmp_path / "two" / "checkpoints" / "last.ckpt").is_dir()
    assert_close(tmp_path / "one", tmp_path / "two", 4)
    for name, how in (("two", one), ("one", two)):  # on another number of processes
        run([*fit, *how, "--trainer.max_epochs=2", "--ckpt_path=last",
             f"--output={tmp_path / name}"], how is two)  # fmt: skip
    assert_close(tmp_path / "one", tmp_path / "two", 8)


def run(argv, apart):
    if not apart:
        return main(argv)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = warm.run(argv, torchrun=torchrun(), env=env)
    assert done.returncode == 0, done.stderr
    return None


def assert_close(one, two, steps):
    losses, states = [], []
    for run in (one, two):
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses.append([float(row[n]) for n in ("train/loss", "val/auc") for row in rows if row[n]])
        states.append(read_checkpoint(run / "checkpoints" / "last.ckpt", in_parts=True))
    assert len(losses[0]) > steps
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], **close)
    (first,), (second,) = (state["optimizer_states"] for state in states)
    assert first["param_groups"] == second["param_groups"]
    torch.testing.assert_close(first["state"], second["state"], **close)
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.callbacks=WeightAveraging"], "cannot average the weights"),
        (["--model.torch_compile=true"], "model.torch_compile"),
        (["--trainer.precision=16-mixed"], "16-mixed"),
    ],
)
def test_options_that_shards_do_not_support_are_refused(
    mind_dir, plm_dir, tmp_path, capsys, options, said
):
    argv = ["fit", f"--data.root={mind_dir}", f"--model.plm={plm_dir}", *OPTIONS]
    argv += ["--trainer.devices=1", "--trainer.strategy=fsdp2", f"--output={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stop:
        main([*argv, *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
