"""Small text encoders for the tests of retrieval."""

import pytest
import torch

from spt_parlai.hub import load_tokenizer
from spt_parlai.model.loading import load_llm
from spt_parlai.retrieval.encoders import TransformerEncoder, WordEncoder


@pytest.fixture(scope='session')
def bert(tmp_path_factory, tiny_llms):
    """The folder of a tiny BERT without a pooler, like many text encoders."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp('encoders') / 'bert'
    tokenizer = AutoTokenizer.from_pretrained(tiny_llms.opt)
    tokenizer.model_max_length = 100
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=128,
                initializer_range=0.3,
            ),
            add_pooling_layer=False,
        ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='session')
def word_encoder(tiny_llms):
    """make(folder of an LLM, texts to index) → WordEncoder."""

    def make(llm, texts):
        tokenizer = load_tokenizer(llm)
        return WordEncoder(load_llm(llm), lambda text: tokenizer.encode(text, add_special_tokens=False), texts)

    return make


@pytest.fixture(params=['bert', 'opt', 'words'])
def encoder(request, bert, tiny_llms, word_encoder):
    """Each kind of encoder, as a function of the texts to index."""
    return {
        'bert': lambda _texts: TransformerEncoder(bert),
        'opt': lambda _texts: TransformerEncoder(tiny_llms.opt),
        'words': lambda texts: word_encoder(tiny_llms.llama, texts),
    }[request.param]
