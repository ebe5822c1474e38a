"""Folders of tiny LLMs with random weights, made here: nothing is downloaded. And the order of the rooms."""

import json
from types import SimpleNamespace

import pytest

LONG = ('training', 'projects', 'integration', 'tests', 'fuzz', 'parlai_hooks', 'agents', 'model', 'demo')
CORPUS = [
    'given persona: i like tea. i have a dog.; context: Q: hello ! how are you ? R: i am fine , thanks . '
    'Q: what do you do ? R:',
    'Q: do you have any pets ? R: yes , a dog and two cats .',
    'my name is anna and i work as a nurse in the city .',
]


def pytest_collection_modifyitems(items):
    """Rooms whose files take long come first, so that processes that share the files end at about the same time."""
    items.sort(key=lambda item: [*LONG, item.path.parent.name].index(item.path.parent.name))


def byte_level_tokenizer():
    """A tokenizer like OPT's: byte-level BPE, a leading space belongs to its word, BOS and EOS are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ['<pad>', '</s>', '<unk>']
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', unk_token='</s>', pad_token='<pad>'
    )


def metaspace_tokenizer():
    """A tokenizer like Llama 2's: SentencePiece-style BPE with `▁` before every text and with byte fallback.

    It has no padding token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ['<unk>', '<s>', '</s>']
    tokens = [f'<0x{byte:02X}>' for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token='<unk>'))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=special, max_token_length=8, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)  # whole lines: some tokens span words
    state = json.loads(trained.to_str())
    words = [t for t, _ in sorted(state['model']['vocab'].items(), key=lambda item: item[1]) if t not in special]
    state['model']['vocab'] = {token: i for i, token in enumerate(special + tokens + words)}
    state['model'].update(byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', unk_token='<unk>')


@pytest.fixture(scope='session')
def tiny_llms(tmp_path_factory):
    """Folders of tiny Hugging Face models; tests only read them.

    `opt`, `llama` and `gpt2` are decoder-only, `bart` is an encoder-decoder.
    """
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    folder = tmp_path_factory.mktemp('llms')
    sizes = {'num_hidden_layers': 2, 'num_attention_heads': 2, 'max_position_embeddings': 160}
    byte_level, metaspace = byte_level_tokenizer(), metaspace_tokenizer()
    special = {'bos_token_id': 1, 'eos_token_id': 1, 'pad_token_id': 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            'opt': (
                byte_level,
                OPTForCausalLM(
                    OPTConfig(
                        vocab_size=len(byte_level),
                        hidden_size=16,
                        word_embed_proj_dim=16,
                        ffn_dim=32,
                        **sizes,
                        **special,
                    )
                ),
            ),
            'llama': (
                metaspace,
                LlamaForCausalLM(
                    LlamaConfig(
                        vocab_size=len(metaspace),
                        hidden_size=16,
                        intermediate_size=32,
                        bos_token_id=1,
                        eos_token_id=2,
                        **sizes,
                    )
                ),
            ),
            'gpt2': (
                byte_level,
                GPT2LMHeadModel(
                    GPT2Config(
                        vocab_size=len(byte_level),
                        n_embd=16,
                        n_layer=2,
                        n_head=2,
                        n_positions=160,
                        bos_token_id=1,
                        eos_token_id=1,
                    )
                ),
            ),
            'bart': (
                byte_level,
                BartForConditionalGeneration(
                    BartConfig(
                        vocab_size=len(byte_level),
                        d_model=16,
                        encoder_layers=1,
                        decoder_layers=1,
                        encoder_attention_heads=2,
                        decoder_attention_heads=2,
                        encoder_ffn_dim=32,
                        decoder_ffn_dim=32,
                        max_position_embeddings=64,
                    )
                ),
            ),
        }
    for name, (tokenizer, model) in made.items():
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    return SimpleNamespace(**{name: str(folder / name) for name in made})
