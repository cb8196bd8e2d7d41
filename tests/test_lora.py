"""LoRA: small adapters beside the weights of a frozen PLM."""

import importlib.util
import itertools
import re

import checkpoints
import pytest
import torch
from conftest import refused
from test_news_encoder import FAMILIES, SIZES, SMALL, news
from test_tuning import NO_DROPOUT, made_plm
from torch import nn
from transformers import AutoConfig, AutoModel

from newsrec.errors import MissingPackageError, UserError
from newsrec.export.weights import read_model, write_model
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.lora import TARGETS, LoraConfig
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import parameter_groups, peak_rates

FAMILIES = FAMILIES | {"albert": SIZES | {"embedding_size": 8}}
ALL_LAYERS = [*FAMILIES]
TOP = [family for family in FAMILIES if family != "albert"]  # whose layers share their weights


def encoder_of(family="bert", tune_layers=2, seed=0, plm=(), **lora):
    plm = made_plm(family, **dict(plm)) if family != "albert" else albert()
    torch.manual_seed(seed)
    lora = LoraConfig(**lora)
    return NewsEncoder(plm, 16, SMALL, tune_layers, max_tokens=12, lora=lora).eval()


def albert():
    torch.manual_seed(0)
    return build_plm({"model_type": "albert", **FAMILIES["albert"]})


def stir(module):
    """Move the adapters away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


def adapted(module):
    """Names of the linear maps that have an adapter."""
    return {n.partition(".lora_A")[0] for n, _ in module.named_parameters() if ".lora_A." in n}


def by_hand(x, weight, bias, a, b, scale):
    """``W x + bias + scale B A x`` for one vector, number by number."""
    inner = [sum(a[r][i] * x[i] for i in range(len(x))) for r in range(len(a))]
    return [
        sum(weight[o][i] * x[i] for i in range(len(x)))
        + bias[o]
        + scale * sum(b[o][r] * inner[r] for r in range(len(a)))
        for o in range(len(weight))
    ]


def test_an_adapted_map_adds_its_product_as_by_hand():
    encoder = stir(encoder_of(tune_layers=1, rank=3, alpha=7.5))
    query = encoder.plm.encoder.layer[2].attention.self.query
    weights = dict(query.named_parameters())
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    parts = ("base_layer.weight", "base_layer.bias", "lora_A.adapter.weight")
    parts = [weights[name].tolist() for name in (*parts, "lora_B.adapter.weight")]
    expected = [by_hand(row, *parts, scale=7.5 / 3) for row in x.tolist()]
    torch.testing.assert_close(query(x), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "tune_layers"),
    [*itertools.product(ALL_LAYERS, [-1]), *itertools.product(TOP, [2])],
)
def test_an_untrained_model_is_the_one_without_adapters_and_only_adapters_learn(
    family, tune_layers
):
    plain = encoder_of(family, tune_layers)
    encoder = encoder_of(family, tune_layers, rank=2)
    texts = news([2, 5, 9, 9, 12])
    vectors = encoder(*texts)
    assert torch.equal(vectors, plain(*texts))
    vectors.pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        learns = "lora_" in name or not name.startswith("plm.")
        assert (parameter.grad is not None) == parameter.requires_grad == learns, name
    layers = [re.findall(r"\.(\d+)\.", name) for name in adapted(encoder)]
    numbers = {"0", "1", "2"} if tune_layers == -1 else {"1", "2"}
    assert {number for found in layers for number in found} == (
        {"0"} if family == "albert" else numbers
    )
    assert not [name for name in adapted(encoder) if "embed" in name]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_kept_states_give_the_vectors_and_gradients_of_the_whole_plm(family):
    found = []
    for given in (False, True):
        encoder = stir(encoder_of(family, 2, plm=NO_DROPOUT, rank=2)).train()
        token_ids, lengths = news([2, 5, 9, 9, 12])
        mask = length_mask(lengths, 12)
        states = encoder.cut.below(token_ids, mask)[mask] if given else None
        torch.manual_seed(3)
        vectors = encoder(token_ids, lengths, states)
        vectors.pow(2).sum().backward()
        found.append([vectors, *(p.grad for p in encoder.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_states_below_the_adapters_are_those_below_tuned_layers():
    keys = {encoder_of(tune_layers=2, rank=rank).cut.key() for rank in (0, 2, 4)}
    assert len(keys) == 1
    assert encoder_of(tune_layers=1, rank=2).cut.key() not in keys


def test_adapters_in_all_layers_are_adapters_in_the_top_three_of_three_bit_for_bit():
    found = []
    for tune_layers in (-1, 3):
        encoder = stir(encoder_of(tune_layers=tune_layers, rank=2, dropout=0.3)).train()
        torch.manual_seed(4)
        vectors = encoder(*news([2, 5, 9, 9, 12]))
        vectors.pow(2).sum().backward()
        found.append([vectors, *(p.grad for p in encoder.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_recomputed_activations_give_the_same_gradients_with_dropout(family):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        plm, lora = made_plm(family), LoraConfig(rank=2, dropout=0.3)
        encoder = NewsEncoder(plm, 16, SMALL, 2, 12, checkpoint_activations=recompute, lora=lora)
        torch.manual_seed(5)
        vectors = stir(encoder)(*news([2, 5, 9, 9, 12]))
        vectors.pow(2).sum().backward()
        found.append([vectors, *(p.grad for p in encoder.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_adapters_take_the_type_of_their_input_under_autocast():
    encoder = encoder_of(rank=2)
    seen = []
    query = encoder.plm.encoder.layer[2].attention.self.query
    query.lora_A["adapter"].register_forward_hook(
        lambda _, x, y: seen.append((x[0].dtype, y.dtype))
    )
    query.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(*news([5, 9]))
    assert {output for _, output in seen} == {torch.bfloat16}
    assert seen[0][0] == seen[1][0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query"], {"attention.self.query"}),
        (["output.dense"], {"output.dense"}),  # a whole name
        (["dense"], {"attention.output.dense", "intermediate.dense", "output.dense"}),
        (["self.key", "key", "intermediate.dense"], {"attention.self.key", "intermediate.dense"}),
    ],
)
def test_targets_are_names_of_linear_maps_or_their_ends(targets, expected):
    names = adapted(encoder_of(tune_layers=1, rank=2, targets=targets))
    assert names == {f"plm.encoder.layer.2.{name}" for name in expected}


def test_twelve_layers_have_adapters_in_all_their_queries_keys_and_values():
    encoder = encoder_of(tune_layers=-1, plm={"num_hidden_layers": 12}, rank=2)
    names = {
        f"plm.encoder.layer.{layer}.attention.self.{part}"
        for layer in range(12)
        for part in ("query", "key", "value")
    }
    assert adapted(encoder) == names


def test_a_rank_above_that_of_the_linear_map_is_refused_before_it_takes_memory():
    width = SIZES["hidden_size"]
    encoder_of(tune_layers=1, rank=width)
    with pytest.raises(UserError, match=rf"rank is 100000000, .* at most {width}\. Choose"):
        encoder_of(tune_layers=1, rank=10**8)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("bert", {"targets": ["queri"]}, r"has 'queri', which no adapted layer.*attention\.self\."
            r"query, attention\.self\.key, .*, output\.dense\."),
        ("fnet", {}, r"which parts of fnet to adapt.*targets.*intermediate\.dense, output\.dense"),
    ],
)  # fmt: skip
def test_unknown_targets_and_families_are_refused_with_the_linear_maps_there_are(
    family, options, said
):
    torch.manual_seed(0)
    plm = build_plm({"model_type": family, **SIZES})
    with pytest.raises(UserError, match=said):
        NewsEncoder(plm, 16, SMALL, 1, max_tokens=12, lora=LoraConfig(rank=2, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("names", "families"), TARGETS.items(), ids=lambda x: x[0])
def test_every_family_in_the_table_has_linear_maps_of_these_names(names, families):
    for family in families:
        with torch.device("meta"):
            plm = AutoModel.from_config(
                AutoConfig.for_model(family, **FAMILIES.get(family, SIZES | {"pad_token_id": 0}))
            )
        linear = [n for n, module in plm.named_modules() if isinstance(module, nn.Linear)]
        for name in names:
            assert [n for n in linear if n.endswith(f".{name}")], (family, name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": -1}, r"model\.lora\.rank is -1; give a whole number.* 0 for no adapters"),
        ({"rank": 2.0}, r"model\.lora\.rank is 2\.0"),
        ({"alpha": 8.0}, r"lora\.alpha is 8\.0, but model\.lora\.rank is 0.*Set model\.lora\.rank"),
        ({"targets": ["query"]}, r"model\.lora\.targets is \['query'\], but"),
        ({"rank": 2, "alpha": 0.0}, r"model\.lora\.alpha is 0\.0; it must be above 0"),
        ({"rank": 2, "alpha": float("nan")}, r"model\.lora\.alpha is nan"),
        ({"rank": 2, "dropout": 1.0}, r"model\.lora\.dropout is 1\.0"),
        ({"rank": 2, "learning_rate": -1e-4}, r"model\.lora\.learning_rate is -0\.0001"),
        ({"rank": 2, "targets": []}, r"model\.lora\.targets is \[\]; name at least one"),
    ],
)
def test_values_that_make_no_adapters_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        RecommenderModule(tune_layers=1, lora=options)


def test_adapters_in_no_layer_are_refused_on_the_command_line(capsys):
    said = refused(capsys, "fit", "--model.lora.rank=8", "--dry_run")
    assert "model.lora.rank is 8, but model.tune_layers is 0" in said
    assert "Set model.tune_layers -1" in said


@pytest.fixture
def without_peft(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "peft" else find(name, *args),
    )


def test_a_missing_peft_is_named_with_its_command_and_only_where_it_is_needed(without_peft):
    RecommenderModule(tune_layers=1)
    with pytest.raises(MissingPackageError, match=r'needs the package peft: .*"newsrec\[lora\]"'):
        RecommenderModule(tune_layers=1, lora={"rank": 2})


def test_adapters_have_a_learning_rate_of_their_own():
    module = RecommenderModule(dim=16, news={"heads": 2}, user={"heads": 2}, tune_layers=1)
    encoder = encoder_of(tune_layers=1, rank=2)
    recommender = nn.Module()
    recommender.news_encoder = encoder
    recommender.open_from_zero = list
    groups = parameter_groups(recommender, 1e-4, 1e-5, 1e-2, 0.01, module.lora.learning_rate)
    by_name = {group["name"]: group for group in groups}
    adapters = [p for n, p in encoder.named_parameters() if "lora_" in n]
    assert len(adapters) == 6
    assert {*by_name["lora"]["params"]} == {*adapters}
    assert (by_name["lora"]["lr"], by_name["lora"]["weight_decay"]) == (2e-4, 0.01)
    assert not [name for name in by_name if "plm" in name]
    assert "model.lora.learning_rate 0.0002" in peak_rates(groups)
    assert "plm_lr" not in peak_rates(groups)


@pytest.fixture(scope="module")
def trained(plm_dir, tmp_path_factory):
    """A checkpoint with adapters that one step has moved."""
    lora = {"rank": 2, "targets": ["query", "value"], "learning_rate": 0.1}
    folder = tmp_path_factory.mktemp("lora")
    return checkpoints.train(folder, plm_dir, tune_layers=1, lora=lora, residual=False)


def test_a_checkpoint_has_the_plm_and_its_adapters_as_plain_values(trained):
    stored = checkpoints.content(trained)
    assert stored["hyper_parameters"]["lora"]["targets"] == ["query", "value"]
    query = "recommender.news_encoder.plm.encoder.layer.1.attention.self.query."
    names = {name.removeprefix(query) for name in stored["state_dict"] if name.startswith(query)}
    base = {"base_layer.weight", "base_layer.bias"}
    assert names == base | {"lora_A.adapter.weight", "lora_B.adapter.weight"}
    assert stored["state_dict"][f"{query}lora_B.adapter.weight"].abs().min() > 0
    module = RecommenderModule.load_from_checkpoint(trained)
    for name, value in module.state_dict().items():
        assert torch.equal(value, stored["state_dict"][name])
    moments = stored["optimizer_states"][0]["state"].values()
    assert sum(s["exp_avg"].numel() for s in moments) == sum(
        p.numel() for p in module.parameters() if p.requires_grad
    )


def test_a_checkpoint_with_adapters_needs_peft(trained, without_peft):
    with pytest.raises(MissingPackageError, match=r"model\.lora needs the package peft") as error:
        RecommenderModule.load_from_checkpoint(trained)
    assert "not as" not in str(error.value)  # nothing is wrong with the file


@pytest.mark.parametrize("rank", [2**40, -1, "8"])
def test_a_checkpoint_with_another_rank_is_refused(trained, tmp_path, rank):
    stored = checkpoints.content(trained)
    stored["hyper_parameters"]["lora"]["rank"] = rank
    torch.save(stored, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"not as `python -m newsrec fit` wrote it.*lora\.rank"):
        RecommenderModule.load_from_checkpoint(tmp_path / "bad.ckpt")


@torch.no_grad()
def test_an_export_has_a_plain_plm_that_gives_the_scores_of_the_adapted_one(trained, tmp_path):
    module = RecommenderModule.load_from_checkpoint(trained)
    stir(module)
    write_model(module, tmp_path)
    plain = read_model(tmp_path / "config.json", tmp_path / "model.safetensors")
    texts = news([0, 0, 2, 5, 9, 9, 12])
    vectors = [each.encode_news(*texts) for each in (module.recommender, plain)]
    users = [m.encode_user(v, torch.tensor([[2, 4, 5], [3, 0, 0]]))[:, 0]
             for m, v in zip((module.recommender, plain), vectors, strict=True)]  # fmt: skip
    ours, expected = (user @ v.T for user, v in zip(users[::-1], vectors[::-1], strict=True))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert not adapted(plain)
    untrained = RecommenderModule(
        module.plm, tune_layers=1, dim=16, residual=False, news=module.news, user=module.user
    )
    untrained.configure_model()
    assert plain.state_dict().keys() == untrained.recommender.state_dict().keys()
    with_zeros = untrained.recommender.encode_news(*texts)
    assert (with_zeros - vectors[0]).abs().max() > 0.01  # the adapters do something
