"""The inputs of the golden numbers: two tiny LLMs, a soft prompt group and a retriever whose every weight is a closed
formula in whole numbers, tokenizers whose every token is written down, and dialogues. They use no library's random
generator or tokenizer trainer, so they never change.
"""

from __future__ import annotations

import math

import torch

K, L, D, HEADS, FFN, WINDOW = 3, 2, 16, 2, 32, 320
TEXT_TRUNCATE, NEW_TOKENS, THRESHOLD = 190, 8, 20.0
SPECIAL = {'opt': ['<s>', '<pad>', '</s>', '<unk>'], 'llama': ['<unk>', '<s>', '</s>']}
BOS, EOS = {'opt': 2, 'llama': 1}, {'opt': 2, 'llama': 2}
SPACE = {'opt': 'Ġ', 'llama': '▁'}  # how each writes the space before a word
MERGES = [
    '_ t',
    'h e',
    '_ a',
    'i n',
    '_t he',
    'o u',
    '_ i',
    'e r',
    '_ s',
    'o n',
    '_ w',
    '_ y',
    '_y ou',
    'in g',
    '_ m',
    '_m y',
    '_a n',
]  # _: space

SHARED = ['i bake bread on sundays.', 'my sister lives in oslo.']
DIALOGUES = [  # (persona, utterances from the partner's first to its last, target)
    (
        ['i keep three goats.', 'i play the cello badly.'],
        ['good evening ! any plans tonight ?'],
        'only me , my cello and some noise .',
    ),
    (SHARED, ['hello there , what did you eat today ?'], 'a warm loaf with butter .'),
    (
        SHARED,
        [
            'hello there , what did you eat today ?',
            'a warm loaf with butter .',
            'that sounds like the café near my flat !',
        ],
        'come over , then .',
    ),
    ([], ['is it true that ships have 2 anchors , not 1 ?', 'mine had four .', 'wow .'], 'yes !'),
    (
        ['i repair clocks.'],
        [
            'do you remember the long winter , when nobody could open a door for all the snow in the street ?',
            'i stayed in my shop and wound every clock twice a day .',
            'and was anybody ever late again ?',
        ],
        "nobody who isn't late by nature .",
    ),
]


def numbers(count: int, seed: int) -> torch.Tensor:
    """float64 [count] in [-1, 1): quadratic residues of a prime, exact on every machine."""
    i = torch.arange(1, count + 1, dtype=torch.int64)
    return ((7919 * i * i + 104729 * i * (seed + 1) + 31 * seed * seed) % 65521).double() * 2 / 65521 - 1


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of the named shapes, exact in float32.

    Norms are around 1, biases are small, and the scale of a matrix depends on its number of inputs.
    """
    tensors = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        values = numbers(math.prod(shape), seed).view(shape)
        if name.endswith('norm.weight'):
            values = 1 + values / 4
        elif name.endswith('bias'):
            values = values / 8
        elif name == 'soft_prompts.tokens':
            values = values * 2  # different enough for the prompts to differ in NLL
        elif 'embed' not in name:
            values = values * 2.5 / shape[-1] ** 0.5
        tensors[name] = values.float()
    return tensors


def trained_tensors() -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: prompts and retriever."""
    return filled(
        {
            'soft_prompts.tokens': (K, L, D),
            'retriever.lin_context.weight': (D, D),
            'retriever.lin_context.bias': (D,),
            'retriever.lin_prompt.weight': (D, D),
            'retriever.lin_prompt.bias': (D,),
        }
    )


def llm_tensors(kind: str) -> dict[str, torch.Tensor]:
    """The LLM's weights under their Hugging Face names (OPT's output projection is its embedding)."""
    V = len(vocabulary(kind))
    if kind == 'opt':
        shapes = {'model.decoder.embed_tokens.weight': (V, D), 'model.decoder.embed_positions.weight': (WINDOW + 2, D)}
        for layer in range(2):
            linears = {f'self_attn.{name}_proj': (D, D) for name in ('q', 'k', 'v', 'out')}
            for name, shape in {**linears, 'fc1': (FFN, D), 'fc2': (D, FFN)}.items():
                shapes[f'model.decoder.layers.{layer}.{name}.weight'] = shape
                shapes[f'model.decoder.layers.{layer}.{name}.bias'] = shape[:1]
            for name in ('self_attn_layer_norm', 'final_layer_norm'):
                shapes.update({f'model.decoder.layers.{layer}.{name}.{end}': (D,) for end in ('weight', 'bias')})
        shapes.update({f'model.decoder.final_layer_norm.{end}': (D,) for end in ('weight', 'bias')})
        return filled(shapes)
    shapes = {'model.embed_tokens.weight': (V, D)}
    for layer in range(2):
        linears = {
            'self_attn.q_proj': (D, D),
            'self_attn.k_proj': (D // 2, D),
            'self_attn.v_proj': (D // 2, D),
            'self_attn.o_proj': (D, D),
            'mlp.gate_proj': (FFN, D),
            'mlp.up_proj': (FFN, D),
            'mlp.down_proj': (D, FFN),
            'input_layernorm': (D,),
            'post_attention_layernorm': (D,),
        }
        shapes.update({f'model.layers.{layer}.{name}.weight': shape for name, shape in linears.items()})
    return filled({**shapes, 'model.norm.weight': (D,), 'lm_head.weight': (V, D)})


# ---- tokenizers ----------------------------------------------------------------------------------------------


def byte_characters() -> list[str]:
    """The character by which byte-level BPE represents each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def merges(kind: str) -> list[tuple[str, str]]:
    return [tuple(pair.replace('_', SPACE[kind]).split()) for pair in MERGES]


def vocabulary(kind: str) -> dict[str, int]:
    if kind == 'opt':
        single = byte_characters()
    else:
        single = [f'<0x{b:02X}>' for b in range(256)] + ['▁', *map(chr, range(33, 127))]
    return {token: i for i, token in enumerate(SPECIAL[kind] + single + [a + b for a, b in merges(kind)])}


def write_llm(kind: str, folder: str) -> None:
    """Write a Hugging Face folder with the LLM and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    sizes = {
        'vocab_size': len(vocabulary(kind)),
        'hidden_size': D,
        'num_hidden_layers': 2,
        'num_attention_heads': HEADS,
        'max_position_embeddings': WINDOW,
        'bos_token_id': BOS[kind],
        'eos_token_id': EOS[kind],
    }
    if kind == 'opt':
        tokenizer = Tokenizer(models.BPE(vocabulary(kind), merges(kind)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = {'bos_token': '</s>', 'eos_token': '</s>', 'unk_token': '</s>', 'pad_token': '<pad>'}
        lm = OPTForCausalLM(OPTConfig(word_embed_proj_dim=D, ffn_dim=FFN, pad_token_id=1, **sizes))
    else:
        tokenizer = Tokenizer(
            models.BPE(vocabulary(kind), merges(kind), unk_token='<unk>', byte_fallback=True, fuse_unk=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace('▁', ' '),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(' ', 1, 0),
            ]
        )
        special = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
        lm = LlamaForCausalLM(LlamaConfig(intermediate_size=FFN, num_key_value_heads=1, **sizes))
    missing, unexpected = lm.load_state_dict(llm_tensors(kind), strict=False)
    assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
    lm.tie_weights()
    lm.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
