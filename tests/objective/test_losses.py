"""Every loss against a float64 version with loops, written directly from its equation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.objective import SptObjective
from spt_parlai.objective.losses import (
    contrastive_loss,
    fusion_nll,
    gold_distribution,
    mean_per_example,
    prompt_nll,
    selection_loss,
    unordered_pairs,
)

quick = settings(max_examples=60, deadline=None)
CLOSE = dict(rtol=1e-9, atol=1e-9)


# ---- the equations, naively ---------------------------------------------------------------------------------


def naive_nll(log_probs, lengths):
    """Eq. 2: [K][B], mean −log p over each example's target tokens."""
    table = []
    for row in log_probs.tolist():
        start, means = 0, []
        for length in lengths:
            means.append(-sum(row[start : start + length]) / length)
            start += length
        table.append(means)
    return table


def softmax(values):
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]


def naive_gold(nll, tau):
    """Eq. 3, left: [B][K]."""
    K, B = len(nll), len(nll[0])
    return [softmax([-nll[i][n] / tau for i in range(K)]) for n in range(B)]


def naive_selection(gold, scores, tau):
    """Eq. 3: [B], KL(gold ‖ softmax(S / τ_s))."""
    divergences = []
    for target, row in zip(gold, scores.tolist(), strict=True):
        predicted = softmax([s / tau for s in row])
        divergences.append(
            sum(g * (math.log(g) - math.log(p)) for g, p in zip(target, predicted, strict=True) if g > 0)
        )
    return divergences


def naive_pairs(scores, similar):
    """Eq. 4: {(m, n): loss} for m < n."""
    rows, losses = scores.tolist(), {}
    for m in range(len(rows)):
        for n in range(m + 1, len(rows)):
            dot = sum(a * b for a, b in zip(rows[m], rows[n], strict=True))
            cosine = dot / math.sqrt(sum(a * a for a in rows[m])) / math.sqrt(sum(b * b for b in rows[n]))
            losses[m, n] = 1 - cosine if similar[m][n] else max(0.0, cosine)
    return losses


def naive_fusion(log_probs, lengths):
    """Eq. 5: [B], mean over target tokens of −log mean_i p_i. Exact even where every p_i underflows."""
    columns = list(zip(*log_probs.tolist(), strict=True))
    start, means = 0, []
    for length in lengths:
        total = 0.0
        for column in columns[start : start + length]:
            top = max(column)
            total -= top + math.log(sum(math.exp(p - top) for p in column) / len(column))
        means.append(total / length)
        start += length
    return means


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


# ---- drawn batches ------------------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """(log_probs [K, N], scores [B, K], lengths, similar) in float64, with log-probabilities from −1e-4 to −1e4."""
    K, B = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 5), min_size=B, max_size=B))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    low, high = draw(st.sampled_from([(-1, 1), (-4, 4), (3, 4)]))
    N = sum(lengths)
    log_probs = -(10 ** (torch.rand(K, N, generator=generator).double() * (high - low) + low))
    scores = torch.rand(B, K, generator=generator).double()
    if draw(st.booleans()):
        scores[:] = scores[0, 0]  # equal scores
    if draw(st.booleans()):
        scores = scores * 2 - 1  # dissimilar pairs below zero too
    similar = torch.rand(B, B, generator=generator) < 0.5
    return log_probs, scores, lengths, similar


def owners(lengths):
    return torch.tensor([n for n, length in enumerate(lengths) for _ in range(length)])


def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), **CLOSE)


# ---- each term ----------------------------------------------------------------------------------------------


@quick
@given(batches())
def test_prompt_nll(batch):
    log_probs, _, lengths, _ = batch
    close(prompt_nll(log_probs, owners(lengths), len(lengths)), naive_nll(log_probs, lengths))


@quick
@given(batches(), st.sampled_from([0.3, 1.0, 2.5]))
def test_gold_distribution(batch, tau):
    log_probs, _, lengths, _ = batch
    gold = gold_distribution(prompt_nll(log_probs, owners(lengths), len(lengths)), tau)
    close(gold, naive_gold(naive_nll(log_probs, lengths), tau))
    close(gold.sum(1), [1.0] * len(lengths))


@quick
@given(batches(), st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([0.5, 1.0, 3.0]))
def test_selection_loss(batch, tau_gold, tau_score):
    log_probs, scores, lengths, _ = batch
    gold = naive_gold(naive_nll(log_probs, lengths), tau_gold)
    losses = selection_loss(torch.tensor(gold, dtype=torch.float64), scores, tau_score)
    close(losses, naive_selection(gold, scores, tau_score))
    assert (losses > -1e-12).all()


def test_selection_loss_is_torchs_batchmean():
    torch.manual_seed(0)
    gold, scores = torch.softmax(torch.randn(5, 4), -1), torch.rand(5, 4)
    expected = torch.nn.functional.kl_div(torch.log_softmax(scores / 0.7, -1), gold, reduction='batchmean')
    torch.testing.assert_close(selection_loss(gold, scores, 0.7).mean(), expected)


@quick
@given(batches())
def test_contrastive_loss(batch):
    _, scores, lengths, similar = batch
    losses = contrastive_loss(scores, similar, unordered_pairs(len(scores)))
    expected = naive_pairs(scores, similar.tolist())
    for m in range(len(lengths)):
        for n in range(len(lengths)):
            assert float(losses[m, n]) == pytest.approx(expected.get((m, n), 0.0), abs=1e-9)


@quick
@given(batches(), st.integers(1, 3))
def test_pairs_across_dialogues(batch, dialogues):
    """With `apart`, a pair within one dialogue adds nothing and is not counted in the mean."""
    log_probs, scores, lengths, similar = batch
    B = len(lengths)
    apart = torch.arange(B) % dialogues
    losses = SptObjective(lambda_selection=0, lambda_fusion=0)(log_probs, scores, owners(lengths), similar, apart=apart)
    pairs = {
        pair: value for pair, value in naive_pairs(scores, similar.tolist()).items() if apart[pair[0]] != apart[pair[1]]
    }
    assert losses.terms['contrastive'].counts.nonzero().tolist() == sorted(map(list, pairs))
    expected = mean(sum(column) for column in zip(*naive_nll(log_probs, lengths), strict=True)) + mean(pairs.values())
    assert float(losses.total) == pytest.approx(expected, rel=1e-9)


def test_contrastive_loss_reads_similarity_of_earlier_to_later():
    scores = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    cosine = math.sqrt(0.5)
    for m, n, expected in ((0, 1, 1 - cosine), (1, 0, cosine)):
        similar = torch.zeros(2, 2, dtype=torch.bool)
        similar[m, n] = True
        assert contrastive_loss(scores, similar, unordered_pairs(len(scores)))[0, 1].item() == pytest.approx(
            expected, abs=1e-6
        )


@quick
@given(batches())
def test_fusion(batch):
    log_probs, _, lengths, _ = batch
    close(fusion_nll(log_probs, owners(lengths), len(lengths)), naive_fusion(log_probs, lengths))


def test_fusion_is_the_nll_of_averaged_probabilities():
    """Against whole distributions: the softmax of every prompt's logits, averaged, then −log of the target."""
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 7, 11).double(), torch.randint(11, (7,))
    expected = -torch.log(torch.softmax(logits, -1).mean(0))[torch.arange(7), targets]
    log_probs = torch.log_softmax(logits, -1)[:, torch.arange(7), targets]
    torch.testing.assert_close(fusion_nll(log_probs, torch.arange(7), 7), expected)


def test_mean_per_example_takes_tokens_in_any_order():
    values = torch.tensor([[1.0, 10.0, 3.0], [2.0, 20.0, 6.0]])
    assert mean_per_example(values, torch.tensor([1, 0, 1]), 2).tolist() == [[10.0, 2.0], [20.0, 4.0]]


# ---- the total ----------------------------------------------------------------------------------------------

LAMBDAS = st.sampled_from([0.0, 0.4, 1.0, 2.0])


@quick
@given(batches(), LAMBDAS, LAMBDAS, LAMBDAS, st.sampled_from([0.5, 1.0]), st.sampled_from([1.0, 2.0]))
def test_total(batch, contrastive, selection, fusion, tau_gold, tau_score):
    """Eq. 6: Σ_i nll + λ1·contrast (mean over pairs) + λ2·selection + λ3·fusion."""
    log_probs, scores, lengths, similar = batch
    objective = SptObjective(selection, contrastive, fusion, tau_gold, tau_score)
    losses = objective(log_probs, scores, owners(lengths), similar)
    nll = naive_nll(log_probs, lengths)
    expected = mean(sum(row[n] for row in nll) for n in range(len(lengths)))
    expected += contrastive * mean(naive_pairs(scores, similar.tolist()).values())
    expected += selection * mean(naive_selection(naive_gold(nll, tau_gold), scores, tau_score))
    expected += fusion * mean(naive_fusion(log_probs, lengths))
    close(losses.total, expected)
    weights = {'contrastive': contrastive, 'selection': selection, 'fusion': fusion}
    assert losses.terms.keys() == {name for name, weight in weights.items() if weight}


def test_defaults_are_the_papers():
    assert SptObjective() == SptObjective(1.0, 1.0, 1.0, 1.0, 1.0)


def example_batch(K=3, lengths=(2, 1, 3), seed=0):
    torch.manual_seed(seed)
    log_probs = -torch.rand(K, sum(lengths), dtype=torch.float64) * 4 - 0.1
    scores = torch.rand(len(lengths), K, dtype=torch.float64)
    similar = torch.rand(len(lengths), len(lengths)) < 0.5
    return log_probs.requires_grad_(), scores.requires_grad_(), owners(lengths), similar


@pytest.mark.parametrize('K, lengths', [(1, (2, 3)), (3, (2,)), (1, (1,)), (4, (1, 1, 1, 1)), (3, (2, 1, 3))])
@pytest.mark.parametrize('lambdas', [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.4, 2.0, 0.7)], ids=str)
def test_gradients_of_the_terms(K, lengths, lambdas):
    """`gradcheck` with a constant gold distribution, as in the method; the objective must have the same gradients."""
    log_probs, scores, example, similar = example_batch(K, lengths)
    B = len(lengths)
    gold = gold_distribution(prompt_nll(log_probs, example, B), 1.0)
    selection, contrastive, fusion = lambdas

    def total(log_probs, scores):
        value = prompt_nll(log_probs, example, B).sum(0).mean() + selection * selection_loss(gold, scores, 1.0).mean()
        value = value + contrastive * contrastive_loss(scores, similar, unordered_pairs(len(scores))).sum() / max(
            B * (B - 1) / 2, 1
        )
        return value + fusion * fusion_nll(log_probs, example, B).mean()

    assert torch.autograd.gradcheck(total, (log_probs, scores))
    expected = torch.autograd.grad(total(log_probs, scores), (log_probs, scores))
    losses = SptObjective(selection, contrastive, fusion)(log_probs, scores, example, similar)
    actual = torch.autograd.grad(losses.total, (log_probs, scores))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_gold_carries_no_gradient():
    log_probs, _, example, _ = example_batch()
    nll = prompt_nll(log_probs, example, 3)
    assert nll.requires_grad and not gold_distribution(nll, 1.0).requires_grad


def test_a_term_that_is_off_sends_no_gradient():
    log_probs, scores, example, _ = example_batch()
    losses = SptObjective(0, 0, 0)(log_probs, scores, example, None)  # no similarity is needed without the contrast
    assert losses.terms == {}
    losses.total.backward()
    assert scores.grad is not None and not scores.grad.any()  # zeros: every trained tensor takes part in every step
    expected = torch.tensor([[-1 / 3 / n for n in (2, 2, 1, 3, 3, 3)]] * 3, dtype=torch.float64)
    torch.testing.assert_close(log_probs.grad, expected)


def test_a_batch_of_one_has_no_pairs():
    log_probs, scores, example, similar = example_batch(lengths=(4,))
    losses = SptObjective()(log_probs, scores, example, similar)
    assert losses.terms['contrastive'].values.tolist() == [[0.0]]
    assert losses.total.item() == pytest.approx(
        (losses.nll.sum() + losses.terms['selection'].values.sum() + losses.terms['fusion'].values.sum()).item(),
        abs=1e-12,
    )


def test_one_prompt_alone():
    """With K = 1 there is nothing to select, and the fusion of one prompt is that prompt."""
    log_probs, scores, example, similar = example_batch(K=1)
    losses = SptObjective()(log_probs, scores, example, similar)
    assert losses.terms['selection'].values.tolist() == [0.0] * 3
    torch.testing.assert_close(losses.terms['fusion'].values, losses.nll[0])


def test_equal_scores():
    """With equal scores, KL = log K − entropy(gold), and the cosine of every pair is 1."""
    log_probs, _, example, _ = example_batch()
    scores = torch.full((3, 3), 0.5, dtype=torch.float64, requires_grad=True)
    similar = torch.tensor([[False, True, False]] * 3)
    losses = SptObjective()(log_probs, scores, example, similar)
    gold = gold_distribution(losses.nll, 1.0)
    torch.testing.assert_close(losses.terms['selection'].values, math.log(3) + (gold * gold.log()).sum(-1))
    torch.testing.assert_close(
        losses.terms['contrastive'].values, torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 0]]).double()
    )
    losses.total.backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize('worst', [-1e4, -1e30])
def test_hopeless_targets_stay_finite(worst):
    """In float32: a target token that is very unlikely under every prompt, and one under a single prompt."""
    log_probs, scores, example, similar = (t.detach().float() if t.is_floating_point() else t for t in example_batch())
    log_probs[:, 0] = worst
    log_probs[1, 3] = worst
    log_probs.requires_grad_()
    scores.requires_grad_()
    losses = SptObjective()(log_probs, scores, example, similar)
    for value in (
        losses.total,
        losses.nll,
        losses.terms['selection'].values,
        losses.terms['contrastive'].values,
        losses.terms['fusion'].values,
    ):
        assert value.isfinite().all() and value.dtype == torch.float32
    losses.total.backward()
    assert log_probs.grad.isfinite().all() and scores.grad.isfinite().all()
    assert losses.terms['fusion'].values[2].item() < 10, 'fusion lets one bad prompt be outvoted'


def test_the_contrast_is_a_mean_whatever_the_batch_size():
    """A batch of identical, dissimilar contexts costs 1 at every size."""
    for B in (2, 3, 6):
        scores = torch.ones(B, 4, dtype=torch.float64)
        batch = (
            torch.full((4, B), -1.0, dtype=torch.float64),
            scores,
            torch.arange(B),
            torch.zeros(B, B, dtype=torch.bool),
        )
        total = SptObjective(0, 1, 0)(*batch).total - SptObjective(0, 0, 0)(*batch).total
        assert total.item() == pytest.approx(1.0, abs=1e-12)
