"""Compute the golden numbers the slow and plain way, from the method's equations.

Everything is in float64, one example and one prompt at a time, without padding and with the full logits. The script
shares its inputs (`helpers/tiny.py`) with the tests and nothing with the package: tokenization, both LLM architectures
and BLEU are written out here.

    python tests/golden/make_golden.py           # write golden.json
    python tests/golden/make_golden.py --check   # compare with it instead
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers import tiny
from helpers.tiny import BOS, DIALOGUES, EOS, HEADS, NEW_TOKENS, TEXT_TRUNCATE, THRESHOLD, D, K, L

GOLDEN = Path(__file__).with_name('golden.json')
KINDS, TEXTS = ('opt', 'llama'), ('context', 'persona')


# ---- text → tokens -------------------------------------------------------------------------------------------


def piece(kind, text, opens=False):
    """Token ids of one piece of the template: byte-pair merging, the earliest rule first."""
    vocabulary = tiny.vocabulary(kind)
    if kind == 'opt':
        characters = tiny.byte_characters()
        symbols = [characters[b] for b in (text if opens else ' ' + text).encode()]
    else:
        symbols = []
        for character in '▁' + text.replace(' ', '▁'):
            symbols += [character] if character in vocabulary else [f'<0x{b:02X}>' for b in character.encode()]
    for pair in tiny.merges(kind):
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == pair:
                symbols[i : i + 2] = [''.join(pair)]
            i += 1
    return [vocabulary[symbol] for symbol in symbols]


def context(kind, persona, utterances):
    """(ids, text) of at most TEXT_TRUNCATE tokens: whole oldest turns go first."""
    head = f'given persona: {" ".join(persona)}; context:' if persona else 'context:'
    turns = [('R:' if i % 2 else 'Q:', text) for i, text in enumerate(utterances)]
    while True:
        ids = [BOS[kind], *piece(kind, head, opens=True)]
        for marker, text in turns:
            ids += piece(kind, f'Q: {text}') if marker == 'Q:' else piece(kind, 'R:') + piece(kind, text)
        ids += piece(kind, 'R:')
        if len(ids) <= TEXT_TRUNCATE:
            return ids, ' '.join([head, *(f'{marker} {text}' for marker, text in turns), 'R:'])
        turns = turns[1:]


# ---- the LLMs ------------------------------------------------------------------------------------------------


def attention(q, k, v):
    """q [T, D]; k, v [T, D]: causal, head by head."""
    T, size = len(q), D // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        weights = q[:, part] @ k[:, part].T / math.sqrt(size)
        weights = weights.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        heads.append(torch.softmax(weights, -1) @ v[:, part])
    return torch.cat(heads, -1)


def opt_logits(w, words):
    """OPT: learned positions (from row 2), layer norms before, ReLU. words [T, D] → [T, V]."""

    def linear(name, x):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f'{name}.weight'] + w[f'{name}.bias']

    x = words + w['model.decoder.embed_positions.weight'][2 : 2 + len(words)]
    for layer in (f'model.decoder.layers.{i}' for i in range(2)):
        y = norm(f'{layer}.self_attn_layer_norm', x)
        y = attention(*(linear(f'{layer}.self_attn.{name}_proj', y) for name in 'qkv'))
        x = x + linear(f'{layer}.self_attn.out_proj', y)
        y = norm(f'{layer}.final_layer_norm', x)
        x = x + linear(f'{layer}.fc2', linear(f'{layer}.fc1', y).clamp(min=0))
    return norm('model.decoder.final_layer_norm', x) @ w['model.decoder.embed_tokens.weight'].T


def llama_logits(w, words):
    """Llama: rotary positions, RMS norms, gated SiLU, one key-value head for both heads. words [T, D] → [T, V]."""
    size = D // HEADS
    angle = torch.arange(len(words)).double()[:, None] / 10000 ** (
        torch.arange(0, size, 2).double() / size
    )  # [T, size / 2]

    def norm(name, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f'{name}.weight']

    def turned(x):
        """Every head's first half and second half are the two coordinates that are turned."""
        heads = []
        for head in x.split(size, -1):
            a, b = head.chunk(2, -1)
            heads += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
        return torch.cat(heads, -1)

    x = words
    for layer in (f'model.layers.{i}' for i in range(2)):
        y = norm(f'{layer}.input_layernorm', x)
        q, k, v = (y @ w[f'{layer}.self_attn.{name}_proj.weight'].T for name in 'qkv')
        y = attention(turned(q), turned(k).repeat(1, HEADS), v.repeat(1, HEADS))
        x = x + y @ w[f'{layer}.self_attn.o_proj.weight'].T
        y = norm(f'{layer}.post_attention_layernorm', x)
        gate, up = (y @ w[f'{layer}.mlp.{name}_proj.weight'].T for name in ('gate', 'up'))
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f'{layer}.mlp.down_proj.weight'].T
    return norm('model.norm', x) @ w['lm_head.weight'].T


# ---- M of equation 4 -----------------------------------------------------------------------------------------


def words_13a(text):
    """Words as NIST's mteval-v13a takes them."""
    text = f' {text} '
    for pattern, put in (
        (r'([\{-\~\[-\` -\&\(-\+\:-\@\/])', r' \1 '),
        (r'([^0-9])([\.,])', r'\1 \2 '),
        (r'([\.,])([^0-9])', r' \1 \2'),
        (r'([0-9])(-)', r'\1 \2 '),
    ):
        text = re.sub(pattern, put, text)
    return text.split()


def sentence_bleu(hypothesis, reference):
    """0–100; orders up to what the hypothesis is long enough for; the n-th order without a match counts 1 / 2^n."""
    h, r = words_13a(hypothesis), words_13a(reference)
    logs, without = [], 0
    for order in range(1, min(4, len(h)) + 1):
        grams = [Counter(tuple(x[i : i + order]) for i in range(len(x) - order + 1)) for x in (h, r)]
        matches, total = sum((grams[0] & grams[1]).values()), len(h) - order + 1
        if not matches:
            if order == 1:
                return 0.0
            without += 1
        logs.append(math.log(100 * (matches or 0.5**without) / total))
    return math.exp(sum(logs) / len(logs) + min(0, 1 - len(r) / len(h))) if logs else 0.0


# ---- the method ----------------------------------------------------------------------------------------------


def cosine(a, b):
    return a @ b / a.norm() / b.norm()


def compute(kind):
    """All golden numbers of one LLM."""
    w = {name: tensor.double() for name, tensor in tiny.llm_tensors(kind).items()}
    trained = {name: tensor.double().requires_grad_() for name, tensor in tiny.trained_tensors().items()}
    prompts = trained['soft_prompts.tokens']
    embedding = w['model.decoder.embed_tokens.weight' if kind == 'opt' else 'model.embed_tokens.weight']
    logits_of = opt_logits if kind == 'opt' else llama_logits

    def projected(name, mean):
        return trained[f'retriever.{name}.weight'] @ mean + trained[f'retriever.{name}.bias']

    examples, terms = [], []
    for persona, utterances, target in DIALOGUES:
        ids, text = context(kind, persona, utterances)
        target_ids = [*piece(kind, target), EOS[kind]]
        v = projected('lin_context', embedding[ids].mean(0))
        scores, log_probs = [], []
        for i in range(K):
            raw = cosine(v, projected('lin_prompt', prompts[i].mean(0)))
            scores.append(raw if 10 * raw > 1 else torch.log1p(torch.exp(10 * raw)) / 10)
            rows = torch.cat([prompts[i], embedding[ids + target_ids]])
            all_log_probs = torch.log_softmax(logits_of(w, rows), -1)  # [T, V]
            first = L + len(ids)
            log_probs.append(torch.stack([all_log_probs[first + t - 1, y] for t, y in enumerate(target_ids)]))
        scores, log_probs = torch.stack(scores), torch.stack(log_probs)  # [K], [K, N]
        nll = -log_probs.mean(1)
        gold = torch.softmax(-nll.detach(), 0)
        selection = (gold * (gold.log() - torch.log_softmax(scores, 0))).sum()
        fusion = -log_probs.exp().mean(0).log().mean()
        selected = int(scores.argmax())
        assert scores[selected] - scores.sort().values[-2] > 1e-3

        reply = []
        for step in range(NEW_TOKENS):
            with torch.no_grad():
                last = logits_of(w, torch.cat([prompts[selected], embedding[ids + reply]]))[-1]
            if not reply:
                last[EOS[kind]] = -math.inf  # no reply is empty
            best = last.topk(2).values
            assert best[0] - best[1] > 1e-3, 'too close to call in float32: change the formula'
            cut_off = step == NEW_TOKENS - 1  # ParlAI's search then writes EOS over the last token
            reply.append(EOS[kind] if cut_off else int(last.argmax()))
            if reply[-1] == EOS[kind]:
                break

        terms.append((nll.sum(), selection, fusion, scores))
        examples.append(
            {
                'context': text,
                'context_ids': ids,
                'target_ids': target_ids,
                'scores': scores.tolist(),
                'nll': nll.tolist(),
                'gold': gold.tolist(),
                'selection': selection.item(),
                'fusion': fusion.item(),
                'selected': selected,
                'reply': reply,
            }
        )

    B = len(DIALOGUES)
    mean = [sum(column) / B for column in list(zip(*terms, strict=True))[:3]]  # NLL, selection, fusion
    result = {'examples': examples, 'bleu': {}, 'contrast': {}, 'total': {}, 'gradient_norms': {}}
    for which in TEXTS:
        texts = [
            e['context'] if which == 'context' else ' '.join(d[0]) for e, d in zip(examples, DIALOGUES, strict=True)
        ]
        bleu = [[sentence_bleu(texts[m], texts[n]) if m < n else None for n in range(B)] for m in range(B)]
        pairs = []
        for m in range(B):
            for n in range(m + 1, B):
                assert abs(bleu[m][n] - THRESHOLD) > 1
                c = cosine(terms[m][3], terms[n][3])
                pairs.append(1 - c if bleu[m][n] > THRESHOLD else c.clamp(min=0))
        contrast = sum(pairs) / len(pairs)
        total = mean[0] + contrast + mean[1] + mean[2]
        gradients = torch.autograd.grad(total, list(trained.values()), retain_graph=True)
        result['bleu'][which], result['contrast'][which], result['total'][which] = bleu, contrast.item(), total.item()
        result['gradient_norms'][which] = {name: g.norm().item() for name, g in zip(trained, gradients, strict=True)}
    return result


def differences(a, b, where=''):
    """Where two trees of numbers differ by more than 1e-9 (other things: at all)."""
    if isinstance(a, float) and isinstance(b, float):
        return [] if abs(a - b) < 1e-9 * max(1, abs(a)) else [f'{where}: {a} / {b}']
    if type(a) is not type(b) or isinstance(a, (dict, list)) and len(a) != len(b):
        return [f'{where}: {a} / {b}']
    if isinstance(a, dict):
        return [d for key in a for d in differences(a[key], b.get(key), f'{where}.{key}')]
    if isinstance(a, list):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f'{where}[{i}]')]
    return [] if a == b else [f'{where}: {a} / {b}']


def main(check):
    computed = {kind: compute(kind) for kind in KINDS}
    if not check:
        lines = json.dumps(computed, ensure_ascii=False, indent=1)
        GOLDEN.write_text(re.sub(r'\n {5,}|\n {4}(?=\])', ' ', lines) + '\n', encoding='utf-8')
        return f'{GOLDEN} is written.', 0
    found = differences(computed, json.loads(GOLDEN.read_text(encoding='utf-8')))
    return ('\n'.join(found), 1) if found else (f'{GOLDEN} is as computed now.', 0)


if __name__ == '__main__':
    said, status = main('--check' in sys.argv[1:])
    print(said)
    sys.exit(status)
