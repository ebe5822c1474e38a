"""How a soft prompt group begins: shapes, then values."""

from __future__ import annotations

import itertools

import pytest
import torch

from spt_parlai.errors import UsageError, naming
from spt_parlai.model.soft_prompts import INITIALISATIONS, SharedPrompts, SoftPromptGroup, initial_prompts

WORDS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + torch.arange(6) * 10


def letters(text):
    """A tokenizer: a letter is a token, a = 0."""
    return [ord(letter) - ord('a') for letter in text]


def begin(init, K, L, words=WORDS, noise=None):
    return initial_prompts(init, K, L, words.__getitem__, letters, len(words), torch.load, noise)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('K, L', [(1, 1), (4, 8), (3, 2)])
@pytest.mark.parametrize('init', INITIALISATIONS)
def test_shape(init, K, L, dtype):
    prompts = begin(init, K, L, WORDS.to(dtype))
    assert prompts.shape == (K, L, 6) and prompts.dtype == torch.float32 and prompts.device.type == 'cpu'
    group = SoftPromptGroup(prompts)
    assert (group.num_prompts, group.length) == (K, L)
    assert [(n, p.shape, p.requires_grad) for n, p in group.named_parameters()] == [('tokens', (K, L, 6), True)]


def test_values_normal():
    torch.manual_seed(0)
    prompts = begin('normal', 40, 50)  # 12,000 draws
    assert float(prompts.mean()) == pytest.approx(0, abs=0.03)
    assert float(prompts.std()) == pytest.approx(1, abs=0.03)
    assert (prompts.flatten(0, 1).std(0) - 1).abs().max() < 0.08


def test_values_embedding_scale():
    torch.manual_seed(0)
    prompts = begin('embedding-scale', 40, 50).flatten(0, 1)
    torch.testing.assert_close(prompts.std(0), WORDS.std(0), rtol=0.08, atol=0)
    assert ((prompts.mean(0) - WORDS.mean(0)).abs() < 0.1 * WORDS.std(0)).all()


def test_values_vocab():
    torch.manual_seed(0)
    rows = begin('vocab', 10, 5).flatten(0, 1).tolist()
    assert sorted(rows) == sorted(WORDS.tolist())  # 50 of 50 words: each once
    few = begin('vocab', 2, 3).flatten(0, 1).tolist()
    assert len(set(map(tuple, few))) == 6 and all(row in WORDS.tolist() for row in few)


@pytest.mark.parametrize('init', INITIALISATIONS)
def test_the_seed_decides(init):
    def drawn(seed):
        torch.manual_seed(seed)
        return begin(init, 2, 3)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_too_few_words():
    with pytest.raises(ValueError, match='17 prompts of 3 tokens need more words than the 50 of the LM; use fewer'):
        begin('vocab', 17, 3)


def test_unknown_initialisation():
    with pytest.raises(ValueError, match="'uniform' is none of normal, embedding-scale, vocab"):
        begin('uniform', 2, 2)


def test_values_text():
    """Each prompt is its text's word embeddings, repeated to L tokens or cut to them."""
    prompts = begin('text:abc| d |efghij', 3, 4)
    expected = [letters(t) for t in ('abca', 'dddd', 'efgh')]
    assert torch.equal(prompts, WORDS[torch.tensor(expected)])


def test_values_text_file(tmp_path):
    path = tmp_path / 'texts.txt'
    path.write_text('abc\n\nde\n', encoding='utf-8')
    assert torch.equal(begin(f'file:{path}', 2, 3), begin('text:abc|de', 2, 3))
    path.write_text('\ufeffabc\r\nd\x85e\n', encoding='utf-8', newline='')
    assert torch.equal(begin(f'file:{path}', 2, 3), begin('text:abc|d\x85e', 2, 3))


@pytest.mark.parametrize(
    'init, reason',
    [
        ('text:abc', '1 text for 2 prompts; give one text for each'),
        ('text:', '0 texts for 2 prompts; give one text for each'),
        ('text:a|b|c', '3 texts'),
        ('text:abcd|abce', 'prompts 0 and 1 begin with the same 3 tokens'),
        ('file:/no/such.txt', 'No such file'),
        ('file:/tmp.txt', 'cannot be read'),
    ],
)
def test_texts_that_do_not_fit(init, reason):
    with pytest.raises(UsageError, match=reason) as error, naming('--prompt-init', init):
        begin(init, 2, 3)
    assert f'--prompt-init {init}: ' in str(error.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / 'texts.txt'
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='not UTF-8'):
        begin(f'file:{path}', 2, 3)


def test_values_of_trained_prompts(tmp_path):
    torch.save(torch.randn(2, 3, 6).double(), tmp_path / 'prompts')
    assert torch.equal(begin(f'file:{tmp_path}/prompts', 2, 3), torch.load(tmp_path / 'prompts').float())
    with pytest.raises(ValueError, match='the file holds prompts of K 2, L 3, D 6, but K 2, L 4, D 6 is needed'):
        begin(f'file:{tmp_path}/prompts', 2, 4)


@pytest.mark.parametrize('noise, expected', [(None, 0.1), (0.3, 0.3)])
def test_noise_on_trained_prompts(tmp_path, noise, expected):
    trained = 3 * torch.randn(1, 40, 6)
    torch.save(trained, tmp_path / 'prompts')
    copies = begin(f'file:{tmp_path}/prompts', 50, 40, noise=noise)
    away = copies - trained
    assert copies.shape == (50, 40, 6)
    assert float(away.std()) == pytest.approx(expected * float(trained.std()), rel=0.05)
    assert away.mean().abs() < 0.03 and (away[0] - away[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    'init, K, noise, reason',
    [
        ('file:{}', 2, 0.0, 'the file holds one prompt, and 2 copies that begin equal stay equal; add noise'),
        ('normal', 2, 0.1, 'noise is added to trained prompts only; set it to 0 or give file:PATH'),
        ('text:a|b', 2, 0.1, 'noise is added to trained prompts only'),
    ],
)
def test_noise_that_cannot_be(tmp_path, init, K, noise, reason):
    torch.save(torch.randn(1, 3, 6), tmp_path / 'prompts')
    with pytest.raises(ValueError, match=reason):
        begin(init.format(tmp_path / 'prompts'), K, 3, noise=noise)


def test_the_group_owns_its_tensor():
    start = torch.zeros(1, 1, 2)
    group = SoftPromptGroup(start)
    group.tokens.data.add_(1)
    assert start.sum() == 0


def test_shared_prompts_begin_as_near_as_their_rank_allows():
    torch.manual_seed(0)
    initial = torch.randn(3, 4, 20, dtype=torch.float64)
    whole = SharedPrompts(initial, 8)  # the differences of 3 prompts of 4 tokens have rank 8
    torch.testing.assert_close(whole.tokens, initial)
    group = SharedPrompts(initial, 2)
    K, L, D, r = 3, 4, 20, 2
    naive = torch.empty(K, L, D, dtype=torch.float64)
    for k, t, d in itertools.product(range(K), range(L), range(D)):
        own = sum(group.own[k, t, i].item() * group.directions[i, d].item() for i in range(r))
        naive[k, t, d] = group.shared[t, d].item() + own
    torch.testing.assert_close(group.tokens, naive)
    away = (initial - initial.mean(0)).flatten(0, 1)
    lost = torch.linalg.svdvals(away)[r:].square().sum()  # the least that rank r can lose
    torch.testing.assert_close((group.tokens - initial).square().sum(), lost)
    assert (group.num_prompts, group.length) == (K, L)


def test_every_reply_trains_the_shared_part():
    group = SharedPrompts(torch.randn(3, 4, 20), 2)
    group.tokens[1].sum().backward()
    assert group.shared.grad.any() and group.directions.grad.any()
    assert group.own.grad.flatten(1).any(1).tolist() == [False, True, False]


def test_a_state_dict_holds_the_plain_prompts_too():
    torch.manual_seed(0)
    group, other = (SharedPrompts(torch.randn(3, 4, 20), 2) for _ in range(2))
    holder = torch.nn.ModuleDict({'prompts': group})
    states = holder.state_dict()
    assert torch.equal(states['prompts.tokens'], group.tokens)
    torch.nn.ModuleDict({'prompts': other}).load_state_dict(states)
    assert torch.equal(other.tokens, group.tokens)
    plain = SoftPromptGroup(torch.zeros(3, 4, 20))
    plain.load_state_dict({'tokens': states['prompts.tokens']})
    assert torch.equal(plain.tokens, group.tokens)


@pytest.mark.parametrize('K, rank', [(1, 1), (2, 4), (2, 0)])
def test_ranks_that_cannot_be(K, rank):
    with pytest.raises(ValueError, match='have ranks from 1 to'):
        SharedPrompts(torch.randn(K, 3, 6), rank)
