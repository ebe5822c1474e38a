"""Groups of rows, each forward and backward before the next, give the numbers of all rows together."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.model.adapters import Lora, add_lora, tune_all
from spt_parlai.model.micro_batches import MicroBatches
from spt_parlai.model.rows import row_groups, rows_of_like_length, token_rows
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.objective import SptObjective
from spt_parlai.objective.assignment import equal_sizes
from spt_parlai.objective.losses import sum_per_example

CONTEXTS, TARGETS = draw([7, 3, 11, 5, 2], seed=1), draw([3, 1, 5, 2, 4], seed=2)
SHARED = dict(
    row=torch.tensor([0, 0, 1, 2, 2]), context_length=torch.tensor([2, 5, 4, 3, 6])
)  # three rows of five turns
CLOSE = dict(rtol=1e-5, atol=1e-6)


def shared_rows():
    """(contexts, targets) of `SHARED`. A row is its last turn's context, which holds the earlier turns."""

    def follow(context, target, more):
        return [*context, *target[:-1], *more]

    targets = draw([2, 3, 1, 3, 2], seed=3)
    first, second, third = draw([2, 4, 3], seed=4)
    contexts = [follow(first, targets[0], [7, 8]), second, follow(third, targets[3], [9])]
    assert [len(c) for c in contexts] == [5, 4, 6]
    return pad(contexts), pad(targets)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 80))
def test_rows_of_like_length(lengths, at_once):
    parts = rows_of_like_length(lengths, at_once)
    assert sorted(row for rows, _ in parts for row in rows) == list(range(len(lengths)))
    for rows, longest in parts:
        assert longest == max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * longest <= at_once
        shortest = min(lengths[row] for row in rows)
        assert shortest >= 0.9 * longest or 4 * (len(rows) - 1) * longest < at_once  # little padding, or few tokens
    for (before, _), (_, longest) in pairwise(parts):
        assert min(lengths[row] for row in before) >= longest


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(1, 60),
)
def test_groups_hold_every_row_and_token_once(sizes, L, at_once):
    contexts, targets = draw([c for c, _ in sizes], seed=1), draw([y for _, y in sizes], seed=2)
    rows = token_rows(pad(contexts), pad(targets))
    groups = row_groups(rows, L, at_once)
    assert sorted(torch.cat([g.token for g in groups]).tolist()) == list(range(len(rows.targets)))
    for number, token, part in groups:
        assert part.mask[0].all() and len(part.ids) * (L + part.ids.shape[1]) <= max(at_once, L + part.ids.shape[1])
        for place, n in enumerate(number.tolist()):
            assert (
                part.ids[place][part.mask[place]].tolist()
                == rows.ids[n][rows.mask[n]].tolist()
                == contexts[n] + targets[n][:-1]
            )
            assert part.row[n] == place
        for name in ('targets', 'example', 'column'):
            assert torch.equal(getattr(part, name), getattr(rows, name)[token])


def gradients(model, inputs, objective=None, bias=None, **more):
    """(prediction, loss, gradients) of the objective; groups run in turn if `token_loss` is given to the model too."""
    model.zero_grad()
    prediction = model(*inputs, **more)
    terms = objective or SptObjective(lambda_contrastive=0.0)
    losses = terms(
        prediction.log_probs, prediction.scores, prediction.example, None, token_loss=prediction.token_loss, bias=bias
    )
    losses.total.backward()
    return (
        prediction,
        losses.total.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def assert_same(found, expected):
    for name, value in found[0]._asdict().items():
        if name != 'token_loss':
            torch.testing.assert_close(value, getattr(expected[0], name), **CLOSE)
    torch.testing.assert_close(found[1], expected[1], **CLOSE)
    for name, gradient in found[2].items():
        assert gradient.any() and torch.isfinite(gradient).all()
        scale = float(expected[2][name].abs().max())
        torch.testing.assert_close(gradient, expected[2][name], rtol=1e-5, atol=1e-6 + 1e-5 * scale)


@pytest.mark.parametrize('chunk', [3, 1])
@pytest.mark.parametrize('at_once', [1, 60])
@pytest.mark.parametrize('family', FAMILIES)
def test_micro_batches_as_together(family, at_once, chunk):
    model = build(tiny_lm(family))[0]
    model.tokens_at_once, objective = 10**6, SptObjective(lambda_contrastive=0.0, lambda_fusion=0.7)
    for inputs, more in (((pad(CONTEXTS), pad(TARGETS)), {}), (shared_rows(), SHARED)):
        model.tokens_at_once, model.prompt_chunk = 10**6, 3
        expected = gradients(model, inputs, objective, **more)
        assert expected[0].token_loss is None and expected[0].log_probs.requires_grad
        model.tokens_at_once, model.prompt_chunk = at_once, chunk
        assert_same(gradients(model, inputs, objective, **more), expected)  # groups, one graph
        found = gradients(model, inputs, objective, **more, token_loss=objective.token_loss, gradient_scale=8.0)
        assert not found[0].log_probs.requires_grad and found[0].token_loss.requires_grad
        assert_same(found, expected)


@pytest.mark.parametrize('kind', ['gated', 'mixture', 'wta', 'annealed', 'equal'])
def test_replies_are_assigned_group_by_group(kind):
    objective = SptObjective(lambda_contrastive=0.0, prompt_assignment=kind, tau_gold=4.0)
    model, found = build(tiny_lm('llama'))[0], []
    with torch.no_grad():
        first = model(*shared_rows(), **SHARED)
        likelihood = sum_per_example(first.log_probs, first.example, len(first.scores)).T
    bias = {'wta': torch.tensor([0.0, 0.4, -0.4]), 'equal': equal_sizes(likelihood)}.get(kind)
    for at_once, chunk in ((10**6, 3), (1, 1), (60, 2)):
        model.tokens_at_once, model.prompt_chunk = at_once, chunk
        more = {} if at_once == 10**6 else {'token_loss': partial(objective.token_loss, bias=bias)}
        found.append(gradients(model, shared_rows(), objective, bias, **SHARED, **more))
    for other in found[1:]:
        assert_same(other, found[0])


def test_nothing_is_kept_of_a_group_that_has_run():
    """What autograd holds after forward: the graph of all rows, or the prompts' gradient if groups run in turn."""

    def held(**more):
        model = build(tiny_lm('llama'))[0]
        model.tokens_at_once = 1
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def forget(tensor):
            kept.pop(tensor.untyped_storage().data_ptr(), None)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, forget):
            model(pad(CONTEXTS), pad(TARGETS), **more)
        return sum(kept.values())

    assert held(token_loss=SptObjective().token_loss) < 0.3 * held()


@pytest.mark.parametrize('family', ['opt', 'gemma2', 'llama'])
@pytest.mark.parametrize('tune', [tune_all, lambda llm: add_lora(llm, Lora(rank=2, alpha=4.0))[0]], ids=['all', 'lora'])
def test_weights_of_the_lm_that_train(family, tune):
    """Their gradients are computed in turn, too: of word embeddings tied to the head, and of matrices in between."""
    objective, found = SptObjective(0.0, 0.0, 0.0), []
    for more in ({}, {'token_loss': objective.token_loss, 'gradient_scale': 4.0}):
        model = build(tiny_lm(family))[0]
        torch.manual_seed(0)
        model.soft_prompts, model.retriever, model.tuned = SoftPromptGroup.none(32), None, tune(model.llm)
        model.prompt_chunk, model.tokens_at_once = 1, 15 if more else 10**6
        for name, parameter in model.tuned.named_parameters():
            if 'lora_B' in name:  # zero at first, and the gradients at A with it
                torch.nn.init.normal_(parameter)
        prediction, loss, gradient = gradients(model, (pad(CONTEXTS), pad(TARGETS)), objective, **more)
        assert (prediction.token_loss is not None) == bool(more)
        found.append((prediction, loss, {name: g for name, g in gradient.items() if g.any()}))
    assert len(found[0][2]) > 5
    assert_same(*found)


@pytest.mark.parametrize('loss', [float('inf'), float('-inf'), float('nan')])
def test_a_loss_that_is_not_finite_makes_every_gradient_nan(loss):
    """Also where its own gradient is finite: a share has its gradient before the whole loss is known."""
    trained = torch.ones(3, requires_grad=True)
    finite, other = MicroBatches([trained]), MicroBatches([trained])
    finite.add(2 * trained.sum())
    other.add(2 * trained.sum() + loss)
    for batches, expected in ((finite, 2.0), (other, float('nan'))):
        trained.grad = None
        batches.sum().backward()
        torch.testing.assert_close(trained.grad, torch.full((3,), expected), equal_nan=True)


def test_without_a_gradient_nothing_goes_backward():
    model = build(tiny_lm('opt'))[0]

    def never(*_):
        raise AssertionError('a loss was asked for')

    with torch.no_grad():
        assert model(pad(CONTEXTS), pad(TARGETS), token_loss=never).token_loss is None
