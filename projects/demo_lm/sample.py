"""Continue a few prompts with the demo LM.

python projects/demo_lm/sample.py [FOLDER]      # default: the demo LM of the package
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spt_parlai.hub import DEMO_FOLDER

PROMPTS = (
    'hi , how are you today ?\n',
    'Do you like to watch movies?\n',
    'persona: i love dogs. i am a teacher. i live near the sea.\nhello , what do you do for a living ?\n',
    'given persona: i play the guitar. i have two sons.; context: Q: hi ! do you have any hobbies ? R:',
)

folder = sys.argv[1] if len(sys.argv) > 1 else DEMO_FOLDER
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
torch.manual_seed(0)
for prompt in PROMPTS:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_p=0.9,
        temperature=0.8,
        max_new_tokens=60,
        pad_token_id=tokenizer.pad_token_id,
    )
    print(prompt + '>>>' + tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) + '\n---')
