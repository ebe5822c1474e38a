"""The LLM's tokenizer as a dictionary that never grows and never reads a user's text as a special token."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from spt_parlai.dialogue.dictionary import NULL_ID, START_ID, TokenizerDictionary
from spt_parlai.errors import UsageError

quick = settings(max_examples=60, deadline=None)

# the word-start mark of SentencePiece is a space to it, so no text can have it back
TEXTS = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='▁'), max_size=30)


@quick
@given(text=TEXTS)
def test_text_comes_back(dictionaries, text):
    for dictionary in dictionaries.values():
        ids = dictionary.txt2vec(text)
        assert dictionary.vec2txt([*ids, dictionary.eos]) == ' '.join(text.split())
        assert not {NULL_ID, START_ID, *dictionary.tokenizer.all_special_ids} & set(ids)


@pytest.mark.parametrize(
    'text',
    [
        'hello there',
        "do n't you ?",
        'a . b , c !',
        'привет мир',
        '你好 世界',
        'مرحبا',
        '👍🏽 ok 👩‍👩‍👧',
        'a\u200bb',
        'tab\x07bell',
        '</s>',
        '<pad> <s>',
        'Q: R: context:',
        'w' * 3000,
    ],
)
def test_odd_text_comes_back(dictionary, text):
    assert dictionary.vec2txt(dictionary.txt2vec(text)) == text


@pytest.mark.parametrize('blank', ['', '   ', '\n\t'])
def test_blank_text_has_no_ids(dictionary, blank):
    assert dictionary.txt2vec(blank) == []


def test_half_a_surrogate_pair_is_an_unknown_character(dictionary):
    """JSON may contain `\\ud83d` alone, which the tokenizers library does not accept."""
    assert dictionary.vec2txt(dictionary.txt2vec(json.loads('"hi \\ud83d ."'))) == 'hi � .'


def test_tokenizer_that_cleans_up_spaces_gives_back_what_it_got(tiny_llms, tmp_path):
    folder = shutil.copytree(tiny_llms.opt, tmp_path / 'llm')
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    wish = 'clean_up_tokenization_spaces'
    config = {**config, wish: True, f'{wish}_for_bpe_even_though_it_will_corrupt_output': True}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    dictionary = TokenizerDictionary({'llm': str(folder)})
    assert dictionary.vec2txt(dictionary.txt2vec("i do n't , do you ?")) == "i do n't , do you ?"


def test_never_grows(dictionary):
    size = len(dictionary)
    for i in range(8 - size % 8):  # as ParlAI pads a dictionary for fp16
        dictionary[f'__FP16_PAD_{i}__'] = 1
    dictionary['x'] = 1
    assert len(dictionary) == size == len(dictionary.tokenizer) == len(dictionary.tok2ind) == len(dictionary.ind2tok)
    assert '__FP16_PAD_0__' not in dictionary


def test_refuses_special_tokens(dictionary):
    with pytest.raises(UsageError, match=r'--special-tok-lst \[A\],\[B\]: .*leave it out'):
        dictionary.add_additional_special_tokens(['[A]', '[B]'])


def test_looks_up_both_ways(dictionary):
    assert (dictionary['__null__'], dictionary['__start__']) == (NULL_ID, START_ID)
    assert (dictionary[NULL_ID], dictionary[START_ID]) == ('__null__', '__start__')
    for token_id in (0, 5, len(dictionary) - 1):
        assert (
            dictionary[dictionary[token_id]] == token_id
            and token_id in dictionary
            and dictionary[token_id] in dictionary
        )
    assert dictionary[dictionary.end_token] == dictionary.eos
    assert len(dictionary) not in dictionary and -1 not in dictionary and 'no such token' not in dictionary
    assert None not in dictionary
    assert dictionary['no such token'] == dictionary[dictionary.unk_token]


def test_padding_is_not_spoken(dictionary):
    ids = dictionary.txt2vec('hello you')
    assert dictionary.vec2txt([START_ID, *ids, dictionary.eos, NULL_ID, NULL_ID]) == 'hello you'


def test_saves_a_note_and_no_copy(dictionary, tmp_path):
    dictionary.save(str(tmp_path / 'model.dict'))
    assert (tmp_path / 'model.dict').read_text() == f'the tokenizer of --llm {dictionary.opt["llm"]}\n'


# ---- tokens that the LLM has no embedding for -----------------------------------------------------------------


def with_token(llm, folder, token: str, special: bool = True, **role: str) -> dict[str, str]:
    """An LLM whose tokenizer has one token more than its embedding, in which the token may have a role."""
    shutil.copytree(llm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)], special_tokens=special)
    for name, value in role.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return {'llm': str(folder)}


@pytest.mark.parametrize('role', [{}, {'pad_token': '<more>'}], ids=['no role', 'padding'])
@pytest.mark.parametrize('name', ['opt', 'llama'])
def test_a_token_that_nothing_gives_needs_no_embedding(tiny_llms, dictionaries, tmp_path, name, role):
    """As in gemma-3-1b, and in many a Llama to which `<pad>` was added."""
    dictionary = TokenizerDictionary(with_token(getattr(tiny_llms, name), tmp_path / 'llm', '<more>', **role))
    before = dictionaries[name]
    size = dictionary.embedded
    assert len(dictionary) == len(before) == size and len(dictionary.tokenizer) == size + 1
    assert size not in dictionary and size - 1 in dictionary
    for text in ('<more>', 'hi <more> you', 'hello there', '<more>\U0010fffd'):
        assert dictionary.txt2vec(text) == before.txt2vec(text) and max(dictionary.txt2vec(text)) < size
        assert dictionary.vec2txt(dictionary.txt2vec(text)) == text


@pytest.mark.parametrize(
    ('token', 'special', 'role'),
    [('more', False, {}), ('<more>', True, {'eos_token': '<more>'}), ('<more>', True, {'bos_token': '<more>'})],
    ids=['word', 'EOS', 'BOS'],
)
def test_a_token_that_may_occur_needs_an_embedding(tiny_llms, tmp_path, token, special, role):
    opt = with_token(tiny_llms.llama, tmp_path / 'llm', token, special, **role)
    with pytest.raises(
        UsageError, match=f"LLM knows [0-9]+, and '{token}' can occur .*; take both from the same model"
    ):
        TokenizerDictionary(opt)
