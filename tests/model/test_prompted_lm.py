"""An example means the same alone and in any batch; the retriever sees the context and nothing else."""

from __future__ import annotations

import pytest
import torch
from helpers.families import VOCAB, build, draw, pad, tiny_lm

CONTEXTS, TARGETS = draw([7, 3, 11, 1, 5], seed=1), draw([3, 1, 5, 2, 1], seed=2)
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module', params=['opt', 'opt-350m', 'llama', 'gpt2', 'bloom', 'mistral'])
def model(request):
    return build(tiny_lm(request.param))[0]


@torch.no_grad()
def predict(model, contexts, targets):
    return model(contexts, targets)


def test_shapes(model):
    B, N = len(CONTEXTS), sum(map(len, TARGETS))
    prediction = predict(model, pad(CONTEXTS), pad(TARGETS))
    assert prediction.log_probs.shape == (3, N) and prediction.log_probs.dtype == torch.float32
    assert prediction.scores.shape == (B, 3) and prediction.scores.dtype == torch.float32
    assert prediction.selected.shape == (B,)
    assert prediction.example.shape == prediction.targets.shape == prediction.greedy.shape == (N,)


def test_alone_as_in_a_batch(model):
    """log-probabilities, scores and selection of the forward pass, of `retrieve` and of `encoder` agree."""
    batch = predict(model, pad(CONTEXTS), pad(TARGETS))
    with torch.no_grad():
        scores, selected = model.retrieve(pad(CONTEXTS))
        encoded = model.encoder(pad(CONTEXTS))
    for n, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True)):
        alone = predict(model, pad([context]), pad([target]))
        torch.testing.assert_close(batch.log_probs[:, batch.example == n], alone.log_probs, **CLOSE)
        assert batch.greedy[batch.example == n].tolist() == alone.greedy.tolist()
        with torch.no_grad():
            encoded_alone = model.encoder(pad([context]))
        torch.testing.assert_close(encoded.logits[n], encoded_alone.logits[0], **CLOSE)
        for found in (batch.scores, scores, encoded.scores):
            torch.testing.assert_close(found[n], alone.scores[0], **CLOSE)
        for found in (batch.selected, selected, encoded.selected):
            assert int(found[n]) == int(alone.selected)


def test_more_padding_changes_nothing(model):
    expected = predict(model, pad(CONTEXTS), pad(TARGETS))
    wider = predict(
        model,
        torch.nn.functional.pad(pad(CONTEXTS), (0, 6), value=-1),
        torch.nn.functional.pad(pad(TARGETS), (0, 3), value=-1),
    )
    torch.testing.assert_close(wider.log_probs, expected.log_probs, **CLOSE)
    torch.testing.assert_close(wider.scores, expected.scores, **CLOSE)


def test_order_of_the_batch_changes_nothing(model):
    expected = predict(model, pad(CONTEXTS), pad(TARGETS))
    turned = predict(model, pad(CONTEXTS[::-1]), pad(TARGETS[::-1]))
    torch.testing.assert_close(turned.scores.flip(0), expected.scores, **CLOSE)
    for n in range(len(CONTEXTS)):
        mine = turned.log_probs[:, turned.example == len(CONTEXTS) - 1 - n]
        torch.testing.assert_close(mine, expected.log_probs[:, expected.example == n], **CLOSE)


def test_scores_depend_on_the_context_alone(model):
    """Neither on targets, nor on padding: not even on what word embedding the padding id has."""
    before = predict(model, pad(CONTEXTS), pad(TARGETS))
    other = predict(model, pad(CONTEXTS), pad(draw([1, 6, 2, 8, 3], seed=9)))
    torch.testing.assert_close(other.scores, before.scores, rtol=0, atol=1e-6)
    weight = model.llm.lm.get_input_embeddings().weight
    word_0 = weight[0].clone()
    without_0 = [[i or 1 for i in c] for c in CONTEXTS]
    targets = [[i or 1 for i in y] for y in TARGETS]
    try:
        before = predict(model, pad(without_0), pad(targets))
        weight.data[0] = 77.0
        after = predict(model, pad(without_0), pad(targets))
        with torch.no_grad():
            scores = model.encoder(pad(without_0)).scores
    finally:
        weight.data[0] = word_0
    assert torch.equal(after.scores, before.scores)
    torch.testing.assert_close(scores, before.scores, **CLOSE)


def test_a_changed_context_changes_scores_and_log_probs(model):
    before = predict(model, pad(CONTEXTS), pad(TARGETS))
    contexts = [[*c[:-1], (c[-1] + 1) % VOCAB] for c in CONTEXTS]
    after = predict(model, pad(contexts), pad(TARGETS))
    assert ((after.scores - before.scores).abs().amax(1) > 1e-4).all()
    for n in range(len(CONTEXTS)):
        assert (after.log_probs - before.log_probs)[:, before.example == n].abs().max() > 1e-4


def test_targets_see_no_later_target(model):
    """Teacher forcing: changing a target's last token changes that token's log-probability and none before it."""
    before = predict(model, pad(CONTEXTS), pad(TARGETS))
    targets = [[*y[:-1], (y[-1] + 1) % VOCAB] for y in TARGETS]
    after = predict(model, pad(CONTEXTS), pad(targets))
    last = torch.tensor([i == len(y) - 1 for y in TARGETS for i in range(len(y))])
    assert torch.equal(after.log_probs[:, ~last], before.log_probs[:, ~last])
    assert (after.log_probs != before.log_probs)[:, last].all()


def test_scores_are_of_the_naive_context_mean():
    lm = tiny_lm('opt-350m')
    model, naive = build(lm)
    means = torch.stack([naive.context_mean(c) for c in CONTEXTS]).float()
    expected = model.retriever(means, model.soft_prompts.tokens)
    torch.testing.assert_close(model.retrieve(pad(CONTEXTS)).scores, expected, **CLOSE)


def test_reordering_leaves_the_encoder_states_as_they_were():
    model, _ = build(tiny_lm('mistral'))
    rows, begin, next_ids = [2, 0, 2], torch.full((3, 1), -2), torch.tensor([[1], [2], [3]])

    def decoded():
        picked = model.reorder_encoder_states(encoded, rows)
        assert picked.selected.tolist() == encoded.selected[rows].tolist()
        logits, state = model.decoder(begin, picked)
        assert torch.equal(logits[:, 0], encoded.logits[rows])
        followed = [logits]
        for _ in range(3):
            logits, state = model.decoder(next_ids, picked, state)
            followed.append(logits)
        return torch.cat(followed, 1)

    with torch.no_grad():
        encoded = model.encoder(pad(CONTEXTS))
        first = encoded.logits.clone()
        assert torch.equal(decoded(), decoded())
    assert torch.equal(encoded.logits, first) and encoded.mask.shape[1] == 2 + 11


def test_output_is_a_copy():
    """ParlAI's search writes into what it gets; the prefill's logits must survive that."""
    model, _ = build(tiny_lm('opt'))
    encoded = model.encoder(pad(CONTEXTS))
    before = encoded.logits.clone()
    model.output(model.decoder(torch.full((5, 1), -2), encoded)[0]).fill_(0)
    assert torch.equal(encoded.logits, before)


@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
def test_a_reply_ends_with_the_probability_of_all_its_end_tokens(model, temperature):
    """Searched replies (temperature 0) end where one end token is the likeliest of all tokens."""
    logits = torch.randn(2, 1, 60, generator=torch.Generator().manual_seed(0))
    model.other_ends, model.end_temperature = [5, 9], temperature
    try:
        found = model.output(logits)
    finally:
        model.other_ends, model.end_temperature = [], 0.0
    ends = [model.END_IDX, 5, 9]
    if temperature:
        expected = (logits / temperature).softmax(-1)[..., ends].sum(-1)
        torch.testing.assert_close((found / temperature).softmax(-1)[..., model.END_IDX], expected)
    else:
        torch.testing.assert_close(found[..., model.END_IDX], logits[..., ends].amax(-1))
    assert (found[..., [5, 9]] < -1e4).all()
