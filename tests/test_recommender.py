"""Batches to scores, against a loop that sees one news item, user and candidate at a time."""

import pytest
import torch
from torch import distributed, nn

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, EvalBatch
from newsrec.model.fastformer import PRESETS, FastformerConfig
from newsrec.model.matching import match_all
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.losses import cross_entropy

DIM = 16
TITLES = [
    [2, 17, 40, 3],
    [2, 9, 3],
    [2, 33, 8, 51, 12, 60, 3],
    [2, 70, 71, 72, 73, 74, 75, 76, 77, 3],
    [2, 44, 3],
    [2, 5, 6, 7, 8, 9, 3],
    [2, 3],
]
SAMPLES = [
    # history, oldest first; candidates, the clicked one first, None where skips are too few
    ([0, 1, 2], [3, 4, 5]),
    ([], [6, 0, None]),
    ([2, 2, 5, 1, 4], [1, None, None]),
    ([0, 1, 2], [5, 3, 2]),
    ([6], [0, 1, 4]),
]


@pytest.fixture(params=[0, 1], ids=["frozen", "top layer tuned"])
def recommender(plm_dir, request):
    shape = {"heads": 4, "ffn": 24}
    model = NewsRecommender(
        load_plm(str(plm_dir)), DIM, request.param, shape, shape, max_tokens=12, max_history=5
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".plm." not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def compose(samples, titles=TITLES, padding=0):
    """Build the batch that a data module makes of these samples, with needless padding if asked."""
    mentioned = {n for history, shown in samples for n in (*history, *shown) if n is not None}
    order = sorted(mentioned, key=lambda n: len(titles[n]))
    row = {n: i for i, n in enumerate(order, start=FIRST_NEWS)} | {None: 0}
    token_lengths = torch.tensor([0] * FIRST_NEWS + [len(titles[n]) for n in order])
    token_ids = torch.zeros(len(row) + 1, max(token_lengths) + padding, dtype=torch.int32)
    for n in order:
        token_ids[row[n], : len(titles[n])] = torch.tensor(titles[n])
    distinct = sorted({tuple(history) for history, _ in samples})
    width = max(map(len, distinct)) + padding
    history = [[row[n] for n in h] + [0] * (width - len(h)) for h in distinct]
    candidates = torch.tensor([[row[n] for n in shown] for _, shown in samples])
    labels = torch.zeros_like(candidates)
    labels[:, 0] = 1
    return Batch(
        token_ids,
        token_lengths,
        None,
        torch.tensor(history).long(),
        torch.tensor([distinct.index(tuple(history)) for history, _ in samples]),
        candidates,
        labels,
    )


def vector_of_news(recommender, n):
    """Return the vector of one news item, encoded alone."""
    title = torch.tensor([TITLES[n]])
    return recommender.news_encoder(title, torch.tensor([title.shape[1]]))[0]


def vector_of_user(recommender, vectors):
    """Return the vector of one user, encoded alone."""
    if not vectors:
        return recommender.user_encoder.empty
    mask = torch.ones(1, len(vectors), dtype=torch.bool)
    return recommender.user_encoder(torch.stack(vectors)[None], mask)[0, 0]


def test_forward_equals_a_loop_over_samples(recommender):
    scores = recommender(compose(SAMPLES))
    assert scores.shape == (5, 3)
    for sample, (history, shown) in enumerate(SAMPLES):
        user = vector_of_user(recommender, [vector_of_news(recommender, n) for n in history])
        for column, n in enumerate(shown):
            if n is not None:
                torch.testing.assert_close(
                    scores[sample, column],
                    user @ vector_of_news(recommender, n),
                    rtol=1e-5,
                    atol=1e-5,
                )


def test_scores_depend_neither_on_who_shares_the_batch_nor_on_padding(recommender):
    together = recommender(compose(SAMPLES))
    assert together.std() > 0.1
    real = torch.tensor([[n is not None for n in shown] for _, shown in SAMPLES])
    for chosen in ([0], [1], [2], [3, 0], [4, 2, 1], [1, 4], [2, 2, 3]):
        for padding in (0, 2):
            scores = recommender(compose([SAMPLES[i] for i in chosen], padding=padding))
            torch.testing.assert_close(
                scores[real[chosen]], together[chosen][real[chosen]], rtol=1e-5, atol=1e-5
            )


def test_a_history_encoded_once_for_its_samples_gives_the_loss_and_gradient_of_one_for_each(
    recommender,
):
    recommender.double()
    shared = compose(SAMPLES)
    assert len(shared.history) < len(SAMPLES)
    alone = shared._replace(history=shared.history[shared.user], user=torch.arange(len(SAMPLES)))
    found = []
    for batch in (shared, alone):
        recommender.zero_grad()
        loss = cross_entropy(recommender.encode(batch), batch)
        loss.backward()
        trained = {n: p.grad for n, p in recommender.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach()} | trained)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        tolerance = 1e-6 if name == "loss" else 1e-9  # the loss is in float32, and so its gradient
        torch.testing.assert_close(value, found[1][name], rtol=tolerance, atol=tolerance)


def test_one_users_score_has_no_gradient_to_the_news_of_others(recommender):
    vectors = torch.randn(9, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    history = torch.tensor([[2, 3, 0], [4, 5, 6], [0, 0, 0]])
    candidate = torch.ones(DIM)
    (recommender.encode_user(vectors, history)[0, 0] @ candidate).backward()
    touched = vectors.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [2, 3]


def test_encode_news_gives_zeros_to_padding_and_to_the_unknown_news_item(recommender):
    batch = compose(SAMPLES)
    vectors = recommender.encode_news(batch.token_ids, batch.token_lengths)
    assert vectors.shape == (len(batch.token_ids), DIM)
    assert (vectors[:FIRST_NEWS] == 0).all()
    assert (vectors[FIRST_NEWS:].abs().sum(dim=1) > 0).all()
    only = recommender.encode_news(batch.token_ids[:FIRST_NEWS], batch.token_lengths[:FIRST_NEWS])
    assert torch.equal(only, torch.zeros(FIRST_NEWS, DIM))


def test_token_states_in_a_batch_replace_the_plm(recommender):
    batch = compose(SAMPLES)
    mask = torch.arange(batch.token_ids.shape[1]) < batch.token_lengths[:, None]
    states = recommender.news_encoder.cut.below(batch.token_ids, mask)[mask]
    given = batch._replace(token_ids=torch.zeros_like(batch.token_ids), token_states=states)
    torch.testing.assert_close(recommender(given), recommender(batch), rtol=1e-5, atol=1e-5)


def test_a_user_without_history_teaches_the_empty_vector(recommender):
    recommender(compose([SAMPLES[0]])).sum().backward()
    assert (recommender.user_encoder.empty.grad == 0).all()
    recommender(compose([SAMPLES[1]]))[0, 0].backward()
    torch.testing.assert_close(recommender.user_encoder.empty.grad, vector_of_news(recommender, 6))


def eval_batch(impressions):
    """Impressions of (history, candidates), in catalogue rows."""
    distinct = sorted({tuple(history) for history, _ in impressions})
    width = max(map(len, distinct), default=0)
    counts = torch.tensor([0] + [len(shown) for _, shown in impressions])
    return EvalBatch(
        history=torch.tensor([[*h, *[0] * (width - len(h))] for h in distinct]).long(),
        user=torch.tensor([distinct.index(tuple(history)) for history, _ in impressions]).long(),
        candidates=torch.tensor([row for _, shown in impressions for row in shown]).long(),
        offsets=counts.cumsum(0),
        labels=None,
        row=torch.arange(len(impressions)),
    )


@pytest.fixture
def catalogue_vectors():
    vectors = torch.randn(12, DIM, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    vectors[1] = vectors[2:].mean(dim=0)  # the unknown news item
    return vectors


def test_score_equals_a_loop_over_impressions(recommender, catalogue_vectors):
    impressions = [
        ([2, 3, 2], [4, 5, 1, 6]),  # an unknown candidate
        ([], [7, 8]),
        ([2, 3, 2], [9]),
        ([11, 10, 9, 8, 7], [2, 11, 3, 5, 1]),
        ([], [1]),
    ]
    scores = recommender.score(catalogue_vectors, eval_batch(impressions))
    expected = []
    for history, shown in impressions:
        user = vector_of_user(recommender, [catalogue_vectors[row] for row in history])
        expected += [user @ catalogue_vectors[row] for row in shown]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_score_takes_impressions_that_all_lack_a_history(recommender, catalogue_vectors):
    scores = recommender.score(catalogue_vectors, eval_batch([([], [3, 4]), ([], [5])]))
    expected = catalogue_vectors[3:6] @ recommender.user_encoder.empty
    torch.testing.assert_close(scores, expected)


def test_score_of_no_impressions_is_empty(recommender, catalogue_vectors):
    batch = eval_batch([])
    for width in (0, 5):
        nobody = batch._replace(history=torch.zeros(0, width, dtype=torch.long))
        assert recommender.score(catalogue_vectors, nobody).shape == (0,)


def test_score_gives_float32_under_autocast_and_from_half_precision(recommender, catalogue_vectors):
    batch = eval_batch([([2, 3, 4], [5, 6, 7])])
    expected = recommender.score(catalogue_vectors, batch)
    with torch.autocast("cpu", torch.bfloat16):
        scores = recommender.score(catalogue_vectors, batch)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0.05, atol=0.2)


def test_every_trained_parameter_gets_a_gradient(recommender):
    # One without would stop DistributedDataParallel on the second step.
    recommender(compose(SAMPLES)).pow(2).sum().backward()
    for name, parameter in recommender.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_shapes_come_as_configs_or_as_the_plain_values_of_a_checkpoint(plm_dir):
    config = FastformerConfig(heads=4, ffn=None)
    plm = load_plm(str(plm_dir))
    names = [
        list(NewsRecommender(plm, DIM, news=given, user=given).state_dict())
        for given in (config, vars(config))
    ]
    assert names[0] == names[1]
    assert not any("ffn" in name for name in names[0])


# Under DDP


@pytest.fixture
def one_process(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("encoder", ["fastformer", "transformer"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("other", "residual"),
    [
        ({}, False),
        ({"positions": "recency", "layers": 2, "share_layers": True}, False),
        ({"pooling": "mean"}, True),
    ],
)
def test_every_preset_trains_under_ddp_without_unused_parameters(
    plm_dir, one_process, preset, encoder, other, residual
):
    shape = FastformerConfig.preset(preset, **({"heads": 4, "encoder": encoder} | other))
    recommender = NewsRecommender(
        load_plm(str(plm_dir)), DIM, 1, shape, shape, 12, max_history=6, residual=residual
    )

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.recommender = recommender

        def forward(self, token_ids, lengths, history):
            news = recommender.encode_news(token_ids, lengths)
            return match_all(recommender.encode_user(news, history), news[2:])

    model = nn.parallel.DistributedDataParallel(Scores())
    lengths = torch.tensor([0, 0, 3, 4, 9, 12])
    token_ids = torch.randint(5, 80, (6, 12)) * length_mask(lengths, 12)
    history = torch.tensor([[2, 3, 0], [0, 0, 0], [5, 4, 2]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # an unused parameter stops the second step
        optimizer.zero_grad()
        loss = model(token_ids, lengths, history).logsumexp(dim=1).sum()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    trained = [p for p in recommender.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
