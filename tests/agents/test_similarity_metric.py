"""`--similarity-metric embedding`: which contexts the contrast takes for similar."""

import pytest
import torch
import torch.nn.functional as F
from helpers.option_groups import check_all
from helpers.runs import agent_of, batch_of, evaluate, train, training_opt
from transformers import BertConfig, BertModel, BertTokenizerFast

from spt_parlai.errors import UsageError
from spt_parlai.retrieval.encoders import TransformerEncoder


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    """A folder with an untrained text encoder."""
    folder = tmp_path_factory.mktemp('encoder')
    letters = 'abcdefghijklmnopqrstuvwxyz:!?.;'
    (folder / 'vocab.txt').write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *letters, *(f'##{c}' for c in letters)])
    )
    BertTokenizerFast(str(folder / 'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=66, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    'given, message',
    [
        ({'similarity_encoder': 'x'}, 'belongs to --similarity-metric embedding'),
        ({'embedding_threshold': 0.5}, 'belongs to --similarity-metric embedding'),
        ({'similarity_metric': 'embedding', 'embedding_threshold': 2.0}, 'give a number between -1 and 1'),
        ({'similarity_metric': 'rouge'}, 'choose from bleu, embedding'),
    ],
)
def test_options_that_cannot_work(tiny_llms, given, message):
    with pytest.raises(UsageError, match=message):
        check_all(training_opt(tiny_llms.opt, **{k: v for k, v in given.items() if k != 'similarity_metric'}) | given)


@pytest.mark.parametrize('text', ['context', 'persona'])
def test_means_of_the_llms_words(tiny_llms, text):
    agent = agent_of(tiny_llms.opt, similarity_metric='embedding', embedding_threshold=0.8, contrastive_text=text)
    texts = [*batch_of(agent, packed=True).texts[text], '']
    words = agent.bare_model.llm.embed
    rows = [agent.dict.txt2vec(text) for text in texts]
    means = torch.stack(
        [
            words(torch.tensor(row)).mean(0) if row else torch.zeros(words(torch.zeros(1).long()).shape[-1])
            for row in rows
        ]
    )
    cosines = F.cosine_similarity(means[:, None], means[None], dim=-1)
    expected = (cosines > 0.8).triu(1)
    assert agent._similar(texts).tolist() == expected.tolist()
    assert 0 < expected.sum() < len(texts) * (len(texts) - 1) / 2 or text == 'persona'


def test_an_encoder(tiny_llms, encoder, tmp_path):
    run = {'similarity_metric': 'embedding', 'similarity_encoder': str(encoder)}
    agent = agent_of(tiny_llms.opt, **run)
    texts = batch_of(agent, packed=True).texts['context']
    vectors = F.normalize(TransformerEncoder(str(encoder))(texts), dim=-1)
    cosines = vectors @ vectors.T
    threshold = float(cosines.median())
    agent.opt['embedding_threshold'] = threshold
    assert agent._similar(texts).tolist() == (cosines > threshold).triu(1).tolist()
    train(tmp_path / 'model', tiny_llms.opt, **run, max_train_steps=1, skip_generation=True)
    all_similar, none = (
        evaluate(tmp_path / 'model', skip_generation=True, embedding_threshold=value) for value in (-1.0, 1.0)
    )
    assert all_similar['contrastive'] < none['contrastive'] and all_similar['ppl'] == none['ppl']


def test_an_encoder_that_is_not_there(tiny_llms, tmp_path):
    with pytest.raises(UsageError, match='--similarity-encoder'):
        agent_of(tiny_llms.opt, similarity_metric='embedding', similarity_encoder=str(tmp_path / 'none'))
