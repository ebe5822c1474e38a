"""Random dialogues made of a few words."""

import random

from spt_parlai.dialogue.messages import Dialogue, Turn

WORDS = 'tea dog ski run cat sea boat night bread jazz snow train rosa nurse city hockey glass shoe king map'.split()


def made_dialogues(count: int, seed: int = 0) -> list[Dialogue]:
    rng = random.Random(seed)
    return [
        Dialogue(
            [f'i like {rng.choice(WORDS)}.'],
            [Turn(' '.join(rng.choices(WORDS, k=rng.randint(3, 9))), i % 2 == 1) for i in range(4)],
        )
        for _ in range(count)
    ]
