"""Tiny random causal LMs of many families, and what the method should compute with them, written the plain way."""

from __future__ import annotations

import copy

import torch
import transformers
from torch import Tensor

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup

VOCAB = 60
LLAMA_LIKE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
_OPT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    ffn_dim=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=2,
)
_GPT = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=2)
_SMALL = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2
)

FAMILIES = {
    'opt': ('OPT', {**_OPT, 'word_embed_proj_dim': 32}),
    'opt-350m': ('OPT', {**_OPT, 'word_embed_proj_dim': 16, 'do_layer_norm_before': False}),
    'llama': ('Llama', LLAMA_LIKE),
    'gpt2': ('GPT2', _GPT),
    'gpt-neo': (
        'GPTNeo',
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=64,
            window_size=4,
            attention_types=[[['global', 'local'], 1]],
            bos_token_id=2,
            eos_token_id=2,
        ),
    ),
    'gpt-neox': ('GPTNeoX', {**_SMALL, 'intermediate_size': 48, 'max_position_embeddings': 64}),
    'gpt-j': ('GPTJ', {**_GPT, 'rotary_dim': 4}),
    'mistral': ('Mistral', {**LLAMA_LIKE, 'sliding_window': 4}),
    'mixtral': ('Mixtral', {**LLAMA_LIKE, 'num_local_experts': 3, 'num_experts_per_tok': 2}),
    'qwen2': ('Qwen2', LLAMA_LIKE),
    'qwen3': ('Qwen3', {**LLAMA_LIKE, 'head_dim': 8}),
    'gemma2': (
        'Gemma2',
        {
            **LLAMA_LIKE,
            'head_dim': 8,
            'pad_token_id': 0,
            'query_pre_attn_scalar': 8,
            'sliding_window': 4,
            'attn_logit_softcapping': 2.0,
            'final_logit_softcapping': 3.0,
        },
    ),
    'gemma3': (
        'Gemma3Text',
        {
            **LLAMA_LIKE,
            'head_dim': 8,
            'pad_token_id': 0,
            'query_pre_attn_scalar': 8,
            'sliding_window': 4,
            'layer_types': ['sliding_attention', 'full_attention'],
        },
    ),
    'bloom': ('Bloom', dict(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)),
    'mpt': ('Mpt', dict(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, expansion_ratio=2)),
    'phi': ('Phi', {**LLAMA_LIKE, 'num_key_value_heads': 4}),
    'phi3': ('Phi3', {**LLAMA_LIKE, 'pad_token_id': 0}),
    'falcon': ('Falcon', {**_SMALL, 'new_decoder_architecture': True, 'num_kv_heads': 2}),
    'falcon-alibi': ('Falcon', {**_SMALL, 'alibi': True}),
}


def tiny_lm(family: str, seed: int = 0) -> torch.nn.Module:
    """A random LM in training mode, its weights large enough for attention, positions and caps to matter."""
    return random_lm(*FAMILIES[family], seed)


def random_lm(name: str, settings: dict, seed: int = 0) -> torch.nn.Module:
    """A random LM of the given configuration class (without its `Config`) and settings, as in `tiny_lm`."""
    config = getattr(transformers, f'{name}Config')(**settings)
    lm = transformers.AutoModelForCausalLM.from_config(config).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.3)
            else:
                parameter.add_(noise * 0.1)
    return lm


class Naive:
    """The method for one prompt and one example at a time, without padding or cache: a full pass for every token."""

    def __init__(self, lm: torch.nn.Module, num_prompts: int = 3, prompt_length: int = 2, seed: int = 0):
        self.lm = copy.deepcopy(lm).eval()
        width = self.lm.get_input_embeddings().weight.shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.prompt_words = torch.randn(num_prompts, prompt_length, width, generator=generator)
        self.prompt_words = self.prompt_words.to(self.lm.dtype)

    def project(self, words: Tensor) -> Tensor:
        """Word embeddings → the width of the LM's body (OPT-350m), [..., E] → [..., D]."""
        for module in self.lm.modules():
            if getattr(module, 'project_in', None) is not None:
                return module.project_in(words)
        return words

    @torch.no_grad()
    def soft_prompts(self) -> Tensor:
        return self.project(self.prompt_words).float()

    @torch.no_grad()
    def context_mean(self, context: list[int]) -> Tensor:
        words = self.project(self.lm.get_input_embeddings()(torch.tensor(context)))
        return sum(words.double()) / len(context)

    @torch.no_grad()
    def logits(self, prompt: int, ids: list[int]) -> Tensor:
        """float64 [T, V]: what follows each of the T ids, after a prompt."""
        words = self.lm.get_input_embeddings()(torch.tensor(ids))
        rows = torch.cat([self.prompt_words[prompt], words])[None]
        return self.lm(inputs_embeds=rows, use_cache=False).logits[0, -len(ids) :].double()

    def log_probs(self, prompt: int, context: list[int], target: list[int]) -> list[float]:
        logits = self.logits(prompt, context + target[:-1])[len(context) - 1 :]
        return [float(torch.log_softmax(row, -1)[t]) for row, t in zip(logits, target, strict=True)]

    def greedy(self, prompt: int, context: list[int], steps: int) -> tuple[list[int], Tensor]:
        """(tokens, logits float64 [steps, V])."""
        tokens, followed = [], []
        for _ in range(steps):
            followed.append(self.logits(prompt, context + tokens)[-1])
            tokens.append(int(followed[-1].argmax()))
        return tokens, torch.stack(followed)


def build(lm: torch.nn.Module, num_prompts: int = 3, prompt_length: int = 2, seed: int = 0) -> tuple[PromptedLM, Naive]:
    """The model under test and its naive twin, with the same prompts."""
    naive = Naive(lm, num_prompts, prompt_length, seed)
    prompts = naive.soft_prompts()
    torch.manual_seed(seed)
    retriever = Retriever(prompts.shape[-1])
    for linear in (retriever.lin_context, retriever.lin_prompt):  # without biases rows select different prompts
        torch.nn.init.normal_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    model = PromptedLM(CausalLM(lm), SoftPromptGroup(prompts), retriever, padding_idx=-1, start_idx=-2, end_idx=2)
    return model, naive


def pad(rows: list[list[int]], padding: int = -1) -> Tensor:
    """Right-padded int64 [B, T]."""
    width = max(map(len, rows))
    return torch.tensor([row + [padding] * (width - len(row)) for row in rows])


def draw(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random token ids, rows of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]
