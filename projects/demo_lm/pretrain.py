"""Pretrain the demo LM: a small OPT with its own byte-level BPE, on a folder of dialogues.

    python projects/demo_lm/pretrain.py --corpus FOLDER --out FOLDER --minutes 90

Progress and both losses are written to `OUT/log.jsonl`. A checkpoint is written every few minutes, and the same command
continues from it, so the run may be stopped at any time. The learning rate follows the clock: a warm-up, a constant
phase, then a linear decay over the last 40% of `--minutes`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from corpus import encode_documents, load_corpus, render
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8192
SPECIAL = ['<s>', '<pad>', '</s>', '<unk>']  # OPT's own ids: bos 0, pad 1, eos 2
WINDOW = 512
MUON_LR, ADAM_LR, WARM_UP, DECAY = 0.02, 2e-3, 0.02, 0.4
CHECKPOINT_SECONDS = 300


def train_tokenizer(dialogues) -> Tokenizer:
    """A byte-level BPE of the rendered corpus. It does not normalise, so decode(encode(text)) == text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((render(d, rng) for d in dialogues), trainer)
    return tokenizer


def build_model() -> OPTForCausalLM:
    """An OPT of 7.0 M parameters: 6 layers × 256, feed-forward 1024, tied embeddings."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        word_embed_proj_dim=256,
        ffn_dim=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        dropout=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    return OPTForCausalLM(config)


def build_optimizers(model):
    """Muon for the hidden matrices; AdamW for embeddings, norms and biases."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and 'embed' not in n and 'lm_head' not in n]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=MUON_LR, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def learning_rate_scale(progress: float) -> float:
    """The share of the peak learning rate at `progress`, from 0 to 1, of the time budget."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    return min(1.0, max(1.0 - progress, 0.0) / DECAY + 0.01)


def mean_loss(model, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats of token rows int64 [B, T]. The body runs in bfloat16, the loss in float32."""
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = model(rows, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, rows: torch.Tensor) -> float:
    """`mean_loss` of held-out rows, in batches."""
    model.eval()
    losses = [mean_loss(model, chunk) * len(chunk) for chunk in rows.split(16)]
    model.train()
    return float(sum(losses)) / len(rows)


def to_rows(ids: list[int]) -> np.ndarray:
    """A stream of token ids as rows int64 [B, WINDOW]; an incomplete last row is left out."""
    n = len(ids) // WINDOW
    return np.asarray(ids[: n * WINDOW], dtype=np.int64).reshape(n, WINDOW)


def export(model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder in half precision, small enough for a package."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
        unk_token='<unk>',
        model_max_length=WINDOW,
    )
    fast.save_pretrained(folder)
    half = build_model()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=90.0)
    parser.add_argument('--batch', type=int, default=16, help='rows of 512 tokens per step')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = load_corpus(args.corpus)
    tokenizer_file = args.out / 'bpe.json'
    if tokenizer_file.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = train_tokenizer(train)
        tokenizer.save(str(tokenizer_file))
    valid_rows = torch.from_numpy(to_rows(encode_documents(held_out, tokenizer, seed=0)))

    model = build_model().train()
    optimizers = build_optimizers(model)
    state = {'step': 0, 'epoch': 0, 'row': 0, 'seconds': 0.0}
    checkpoint = args.out / 'checkpoint.pt'
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved['model'])
        for optimizer, s in zip(optimizers, saved['optimizers'], strict=True):
            optimizer.load_state_dict(s)
        state = saved['state']
    print(
        f'{sum(p.numel() for p in model.parameters()):,} parameters, {len(train)} + {len(held_out)} dialogues',
        flush=True,
    )

    def save() -> None:
        part = checkpoint.with_suffix('.part')
        torch.save(
            {'model': model.state_dict(), 'optimizers': [o.state_dict() for o in optimizers], 'state': state}, part
        )
        os.replace(part, checkpoint)
        export(model, tokenizer, args.out / 'hf')

    budget = args.minutes * 60
    epoch_rows, loaded_epoch = None, -1
    clock, last_saved, recent = time.monotonic(), state['seconds'], []
    log = (args.out / 'log.jsonl').open('a')
    while state['seconds'] < budget:
        if loaded_epoch != state['epoch']:
            rows = to_rows(encode_documents(train, tokenizer, seed=state['epoch'] + 1))
            epoch_rows = torch.from_numpy(rows[np.random.default_rng(state['epoch']).permutation(len(rows))])
            loaded_epoch = state['epoch']
        batch = epoch_rows[state['row'] : state['row'] + args.batch]
        scale = learning_rate_scale(state['seconds'] / budget)
        for optimizer, peak in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group['lr'] = peak * scale
        loss = mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        state['step'] += 1
        state['row'] += args.batch
        if state['row'] + args.batch > len(epoch_rows):
            state.update(epoch=state['epoch'] + 1, row=0)
        now = time.monotonic()
        state['seconds'] += now - clock
        clock = now
        if state['step'] % 20 == 0:
            entry = {
                'step': state['step'],
                'epoch': state['epoch'],
                'minutes': round(state['seconds'] / 60, 2),
                'tokens': state['step'] * args.batch * WINDOW,
                'loss': round(float(np.mean(recent)), 4),
                'lr': round(scale, 3),
            }
            if state['step'] % 200 == 0:
                entry['held_out'] = round(held_out_loss(model, valid_rows), 4)
            recent = []
            print(json.dumps(entry), flush=True)
            log.write(json.dumps(entry) + '\n')
            log.flush()
        if state['seconds'] - last_saved > CHECKPOINT_SECONDS:
            last_saved = state['seconds']
            save()
    save()
    final = {'final': True, 'step': state['step'], 'held_out': round(held_out_loss(model, valid_rows), 4)}
    print(json.dumps(final), flush=True)
    log.write(json.dumps(final) + '\n')


if __name__ == '__main__':
    main()
