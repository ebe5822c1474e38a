"""The vector of a text is a mean over its own tokens, whatever else is in the batch."""

import math
import shutil

import pytest
import torch
from helpers.retrieval_data import made_dialogues
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, FNetConfig, FNetModel

from spt_parlai.dialogue.template import render
from spt_parlai.errors import UsageError
from spt_parlai.retrieval.encoders import TransformerEncoder

TEXTS = [
    'hello',
    'given persona: i like tea. i have a dog.; context: Q: hello ! how are you ? R:',
    'context: Q: yes R:',
] + [render(dialogue) for dialogue in made_dialogues(5)]


def test_a_vector_depends_on_its_text_alone(encoder):
    """It depends neither on the padding, nor on the batch, nor on the place in it."""
    encode = encoder(TEXTS)
    alone = torch.cat([encode([text]) for text in TEXTS])
    assert alone.dtype == torch.float32 and len(alone) == len(TEXTS)
    torch.testing.assert_close(encode(TEXTS), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encode(TEXTS[::-1]).flip(0), alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(encode(TEXTS), encode(TEXTS)) and encode.fingerprint == encoder(TEXTS).fingerprint
    assert torch.pdist(alone).min() > 1e-3


def test_is_the_mean_of_the_last_hidden_states(bert):
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(
                **tokenizer(text, return_tensors='pt', truncation=True, max_length=100, return_token_type_ids=False)
            )
        torch.testing.assert_close(TransformerEncoder(bert)([text])[0], hidden.last_hidden_state[0].mean(0))


def test_a_long_text_is_cut_where_the_encoder_ends(bert):
    long = 'how are you ? ' * 300
    tokens = AutoTokenizer.from_pretrained(bert)(long)['input_ids']
    assert len(tokens) > 100 == TransformerEncoder(bert).longest
    assert TransformerEncoder(bert)([long]).isfinite().all()


def test_a_text_holds_no_control_token(bert):
    """The mean of `a </s>` is over the pieces of these four characters."""
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    ids = tokenizer.encode('a </s>', split_special_tokens=True)
    assert tokenizer.eos_token_id not in ids[2:-1] and len(ids) > len(tokenizer.encode('a </s>'))
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state
    encode = TransformerEncoder(bert)
    torch.testing.assert_close(encode(['a </s>'])[0], hidden[0].mean(0))
    long = 'how are you ? ' * 300
    torch.testing.assert_close(encode([f'{long}</s>']), encode([long]))  # cut where others are


def test_rare_words_weigh_more_and_repeated_ones_little_more(tiny_llms, word_encoder):
    """A token that occurs c times in a text and in n of N texts has the weight (1 + ln c) · ln((N + 2) / (n + 1))."""
    texts = ['tea tea', 'tea dog', 'tea', 'hockey']
    encode, tokenizer = word_encoder(tiny_llms.opt, texts), AutoTokenizer.from_pretrained(tiny_llms.opt)
    embedding = AutoModelForCausalLM.from_pretrained(tiny_llms.opt).get_input_embeddings().weight
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    query = tokenizer.encode('tea dog dog dog hockey', add_special_tokens=False)
    weights = {t: (1 + math.log(query.count(t))) * math.log(6 / (1 + sum(t in row for row in rows))) for t in query}
    expected = sum(weight * embedding[t] for t, weight in weights.items()) / sum(weights.values())
    assert min(weights.values()) > 0 and len({round(w, 3) for w in weights.values()}) > 2
    torch.testing.assert_close(encode(['tea dog dog dog hockey'])[0], expected.detach())


def another_depth(config):
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    'damage, reason',
    [
        (lambda folder: (folder / 'config.json').unlink(), 'holds no config.json'),
        (lambda folder: (folder / 'model.safetensors').write_bytes(b'x' * 50), 'could not be loaded as a text encoder'),
        (lambda folder: [path.unlink() for path in folder.glob('token*')], 'tokenizer'),
        (lambda folder: another_depth(folder / 'config.json'), 'its weights do not belong to its config.json'),
    ],
)
def test_a_folder_that_is_no_encoder_is_told_by_its_option(bert, tmp_path, damage, reason):
    folder = tmp_path / 'bert'
    shutil.copytree(bert, folder)
    damage(folder)
    with pytest.raises(UsageError) as error:
        TransformerEncoder(str(folder))
    assert (
        f'--retrieval-encoder {folder}' in str(error.value)
        and reason in str(error.value)
        and '--llm' not in str(error.value)
    )


def test_an_encoder_decoder_and_an_unknown_id_are_refused(tiny_llms, monkeypatch):
    with pytest.raises(UsageError, match='--retrieval-encoder .* is an encoder-decoder'):
        TransformerEncoder(tiny_llms.bart)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(UsageError, match='--retrieval-encoder no/such .*--retrieval-encoder llm'):
        TransformerEncoder('no/such')


def test_an_encoder_that_mixes_padding_into_a_text_is_refused(bert, tmp_path):
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    config = FNetConfig(
        vocab_size=AutoConfig.from_pretrained(bert).vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    FNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f'--retrieval-encoder {tmp_path}: FNetModel gives a text another vector'):
        TransformerEncoder(str(tmp_path))
