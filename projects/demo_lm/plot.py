"""Draw the loss curve of a pretraining run; this needs matplotlib.

python projects/demo_lm/plot.py OUT/log.jsonl loss.png
"""

import json
import sys

import matplotlib.pyplot as plt

log, picture = sys.argv[1:]
entries = [json.loads(line) for line in open(log, encoding='utf-8')]
steps = [e for e in entries if 'loss' in e]
held_out = [e for e in steps if 'held_out' in e]

figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
axes.plot([e['tokens'] / 1e6 for e in steps], [e['loss'] for e in steps], label='training')
axes.plot([e['tokens'] / 1e6 for e in held_out], [e['held_out'] for e in held_out], 'o-', label='held out')
axes.set(xlabel='million tokens', ylabel='loss, nats per token', title='Pretraining the demo LM')
axes.set_ylim(top=6.5)
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(picture, dpi=120)
