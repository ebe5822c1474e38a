"""Real replies to score, and tiny encoders with which to score them."""

import itertools
import json
import os
import random
from pathlib import Path

import pytest

from spt_parlai.tasks.sample import agents as sample

FOLDER = os.environ.get('SPT_SHARED_DATA')


def replies(path: Path) -> list[str]:
    """The utterances of the speaker who is modelled, from a file in ParlAI's old dialogue format."""
    return [line.split('\t')[1] for line in path.read_text(encoding='utf-8').splitlines() if line.count('\t')]


def paired(said: list[str], count: int) -> list[tuple[str, str]]:
    """Replies against other replies: half of them drawn, a quarter against the next reply of the dialogue, and a
    quarter that begin as their reference does, as good replies often do."""
    draw = random.Random(5)
    pairs = [(draw.choice(said), draw.choice(said)) for _ in range(count // 2)]
    pairs += itertools.islice(itertools.pairwise(said), count // 4)
    for _ in range(count - len(pairs)):
        reply, reference = draw.choice(said).split(' '), draw.choice(said).split(' ')
        cut = draw.randrange(1, 6)
        pairs.append((' '.join(reference[:cut] + reply[cut:]), ' '.join(reference)))
    return pairs


@pytest.fixture(
    scope='session',
    params=[
        'sample',
        pytest.param('ConvAI2', marks=pytest.mark.skipif(not FOLDER, reason='SPT_SHARED_DATA names no folder of data')),
    ],
)
def pairs(request) -> list[tuple[str, str]]:
    """At least 200 (reply, reference) from the sample task, and from ConvAI2 if it is available, with some odd ones."""
    if request.param == 'sample':
        path, count = Path(sample.__file__).with_name('train.txt'), 240
    else:
        path, count = next(Path(FOLDER).rglob('valid_self_original_no_cands.txt')), 2000
    odd = [
        ('', 'yes .'),
        ('.', 'yes .'),
        ('no', 'No !'),
        ("i'm  20 , you &amp; me", "I'm 20, you & me"),
        ('é 😀 ok', '😀 ok'),
        ('yes', 'yes'),
    ]
    return paired(replies(path), count) + odd


@pytest.fixture(scope='session')
def encoders(tiny_llms, tmp_path_factory):
    """Folders of tiny random encoders, without a longest text in their tokenizers: name → folder."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        DebertaConfig,
        DebertaModel,
        DebertaTokenizer,
        RobertaConfig,
        RobertaModel,
        RobertaTokenizer,
    )

    folder = tmp_path_factory.mktemp('encoders')
    letters = [chr(i) for i in range(33, 127)]
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *('##' + letter for letter in letters)]
    bpe = json.loads((Path(tiny_llms.opt) / 'tokenizer.json').read_text())['model']
    merges = [tuple(merge) for merge in bpe['merges']]

    def vocabulary(*special):
        return {
            token: i
            for i, token in enumerate([*special, *(t for t in bpe['vocab'] if t not in ('<pad>', '</s>', '<unk>'))])
        }

    tokenizers = {
        'bert': BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}),
        'roberta': RobertaTokenizer(vocab=vocabulary('<s>', '<pad>', '</s>', '<unk>', '<mask>'), merges=merges),
        'deberta': DebertaTokenizer(vocab=vocabulary('[PAD]', '[CLS]', '[SEP]', '[UNK]', '[MASK]'), merges=merges),
    }
    size = {
        'hidden_size': 32,
        'num_hidden_layers': 3,
        'num_attention_heads': 2,
        'intermediate_size': 48,
        'initializer_range': 0.2,
    }
    models = {
        'bert': (BertModel, BertConfig(vocab_size=len(tokenizers['bert']), max_position_embeddings=40, **size)),
        'roberta': (
            RobertaModel,
            RobertaConfig(vocab_size=len(tokenizers['roberta']), max_position_embeddings=42, pad_token_id=1, **size),
        ),
        'deberta': (
            DebertaModel,
            DebertaConfig(
                vocab_size=len(tokenizers['deberta']),
                max_position_embeddings=40,
                pad_token_id=0,
                type_vocab_size=0,
                relative_attention=True,
                pos_att_type=['c2p', 'p2c'],
                position_biased_input=False,
                **size,
            ),
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, (kind, config) in models.items():
            tokenizers[name].save_pretrained(folder / name)
            kind(config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}
