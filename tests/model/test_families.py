"""Every LM family computes what the plain, unpadded, uncached Hugging Face model computes."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, VOCAB, build, draw, pad, tiny_lm

CONTEXTS = draw([7, 3, 11, 1], seed=1)
TARGETS = draw([3, 1, 5, 2], seed=2)
STEPS = 8
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module', params=FAMILIES)
def pair(request):
    """(model, naive twin, what the model selects for CONTEXTS)."""
    model, naive = build(tiny_lm(request.param))
    _, selected = model.retrieve(pad(CONTEXTS))
    assert len(set(selected.tolist())) > 1, f'all rows select prompt {selected[0]}: the tests would see one prompt only'
    return model, naive, selected.tolist()


def step(model, ids, encoded, state):
    """One step of ParlAI's search: float32 logits [R, V] and the state."""
    logits, state = model.decoder(ids, encoded, state)
    return model.output(logits[:, -1:])[:, 0], state


def start(rows: int) -> torch.Tensor:
    return torch.full((rows, 1), -2)


def test_log_probs(pair):
    model, naive, selected = pair
    prediction = model(pad(CONTEXTS), pad(TARGETS))
    for k in range(3):
        expected = [p for c, y in zip(CONTEXTS, TARGETS, strict=True) for p in naive.log_probs(k, c, y)]
        torch.testing.assert_close(prediction.log_probs[k].double(), torch.tensor(expected).double(), **CLOSE)
    assert prediction.selected.tolist() == selected
    assert prediction.targets.tolist() == [t for y in TARGETS for t in y]
    assert prediction.example.tolist() == [n for n, y in enumerate(TARGETS) for _ in y]
    likeliest = [
        int(row.argmax())
        for c, y, k in zip(CONTEXTS, TARGETS, selected, strict=True)
        for row in naive.logits(k, c + y[:-1])[len(c) - 1 :]
    ]
    assert prediction.greedy.tolist() == likeliest


def test_greedy_decoding(pair):
    model, naive, selected = pair
    B = len(CONTEXTS)
    with torch.no_grad():
        encoded = model.reorder_encoder_states(model.encoder(pad(CONTEXTS)), torch.arange(B))
        ids, state, followed = start(B), None, []
        for _ in range(STEPS):
            logits, state = step(model, ids, encoded, state)
            followed.append(logits)
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            state = model.reorder_decoder_incremental_state(state, torch.arange(B))
    for n in range(B):
        tokens, logits = naive.greedy(selected[n], CONTEXTS[n], STEPS)
        assert ids[n, 1:].tolist() == tokens
        torch.testing.assert_close(torch.stack(followed, 1)[n].double(), logits, **CLOSE)


def test_beam_reordering(pair):
    """Rows repeated, then shuffled, dropped and doubled at each step, as a beam search does."""
    model, naive, selected = pair
    generator = torch.Generator().manual_seed(3)
    origin = torch.arange(len(CONTEXTS)).repeat_interleave(3)  # whose context each row continues
    R = len(origin)
    with torch.no_grad():
        encoded = model.reorder_encoder_states(model.encoder(pad(CONTEXTS)), origin)
        ids, state = start(R), None
        for _ in range(4):
            logits, state = step(model, ids, encoded, state)
            for row in range(R):
                n = int(origin[row])
                expected = naive.logits(selected[n], CONTEXTS[n] + ids[row, 1:].tolist())[-1]
                torch.testing.assert_close(logits[row].double(), expected, **CLOSE)
            kept = torch.randint(R, (R,), generator=generator)
            state = model.reorder_decoder_incremental_state(state, kept)
            origin, ids = origin[kept], torch.cat([ids[kept], torch.randint(VOCAB, (R, 1), generator=generator)], 1)


def test_decode_forced(pair):
    model, naive, selected = pair
    with torch.no_grad():
        encoded = model.encoder(pad(CONTEXTS))
        logits, likeliest = model.decode_forced(encoded, pad(TARGETS))
        again, _ = model.decode_forced(encoded, pad(TARGETS))
        first, _ = model.decoder(start(len(CONTEXTS)), encoded)
    for n, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True)):
        expected = naive.logits(selected[n], context + target[:-1])[len(context) - 1 :]
        torch.testing.assert_close(logits[n, : len(target)].double(), expected, **CLOSE)
        assert likeliest[n, : len(target)].tolist() == expected.argmax(-1).tolist()
        torch.testing.assert_close(first[n, 0].double(), expected[0], **CLOSE)
    real = pad(TARGETS) >= 0
    assert torch.equal(logits[real], again[real]), 'decoding spoils the encoder states'
