"""Memory of each device and time of a step, from the shape of an LLM and the options of a run. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from spt_parlai.planning.shape import Shape

# As in `model.memory_estimate`: float32 copies of logits, bytes of a chunk of them, and Adam's states (AMSGrad).
LOGIT_COPIES, LOGIT_CHUNK, STATES = 3, 2**26, 3
PLACEMENTS = ('none', 'device map', 'hybrid', 'full')


@dataclass(frozen=True)
class Run:
    """What is trained, on how much.

    agent: spt, prompt_tuning, lora or full; K, L: prompts and their tokens; batchsize: dialogues of a step and process;
    dialogue, turns, reply: tokens and turns of a dialogue, and tokens of a reply; tokens_at_once: `--tokens-at-once`;
    replies: rows of `--eval-batchsize`; new: `--max-new-tokens`; recompute: `--checkpoint-activations`.
    """

    agent: str = 'spt'
    K: int = 4
    L: int = 8
    batchsize: int = 4
    dialogue: int = 320
    turns: int = 7
    reply: int = 16
    tokens_at_once: int = 8192
    replies: int = 32
    new: int = 32
    packed: bool = True
    recompute: bool = False
    lora_rank: int = 8

    @property
    def prompts(self) -> int:
        return self.K if self.agent == 'spt' else 1

    @property
    def row(self) -> int:
        """Tokens of the longest row: a whole dialogue, or its last context and reply, after a prompt."""
        return self.dialogue + (self.L if self.agent in ('spt', 'prompt_tuning') else 0)

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.batchsize * self.prompts * (1 if self.packed else self.turns)

    @property
    def rows_at_once(self) -> int:
        """Rows of a forward and backward pass: all prompts after as many examples as `--tokens-at-once` allows."""
        examples = max(1, self.tokens_at_once // self.prompts // self.row)
        return min(self.rows, examples * self.prompts)

    @property
    def passes(self) -> int:
        return -(-self.rows // self.rows_at_once)

    @property
    def tokens(self) -> float:
        """Tokens that a step puts through the LLM. Turn by turn, a context has half of the dialogue on average."""
        mean = self.row if self.packed else self.row - self.dialogue / 2
        return self.rows * mean

    @property
    def targets(self) -> int:
        return self.batchsize * self.turns * self.reply


def trained(run: Run, shape: Shape) -> int:
    """How many numbers train."""
    D = shape.hidden_size
    if run.agent == 'full':
        return shape.parameters
    if run.agent == 'lora':  # beside two square matrices of each layer
        return shape.layers * 2 * run.lora_rank * 2 * D
    return run.prompts * run.L * D + (2 * (D * D + D) if run.agent == 'spt' else 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. cache: of replies, which are not made while a step runs."""

    weights: float
    activations: float
    logits: float
    states: float
    cache: float

    @property
    def training(self) -> float:
        return self.weights + self.activations + self.logits + self.states

    @property
    def peak(self) -> float:
        return max(self.training, self.weights + self.states + self.cache)


def memory(run: Run, shape: Shape, placement: str, devices: int, of_machine: int) -> Memory:
    """Memory of each device.

    :param placement: one of `PLACEMENTS`.
    :param devices: of all machines; of_machine: of one.
    """
    sharers = {'none': 1, 'device map': 1, 'hybrid': of_machine, 'full': devices}[placement]
    split = of_machine if placement == 'device map' else 1  # layers lie on different devices
    frozen = run.agent != 'full'
    weights = (shape.bytes if frozen else 4 * shape.parameters) / split / sharers
    if sharers > 1:
        weights += shape.largest_unit * (1 if frozen else 4 / shape.itemsize)
    tokens = run.rows_at_once * run.row
    layers = -(-shape.layers // split)
    per_token = shape.kept * layers
    if run.recompute:
        per_token = layers * shape.hidden_size * shape.itemsize + shape.kept
    targets = run.rows_at_once * run.reply * (run.turns if run.packed else 1)
    token = shape.vocabulary * (shape.itemsize + 4 * LOGIT_COPIES)
    logits = min(targets * token, LOGIT_COPIES * LOGIT_CHUNK) if frozen else targets * token
    states = 4 * trained(run, shape) * (1 + STATES) / (1 if frozen else sharers)
    cache = run.replies * (run.row + run.new) * shape.cached * layers
    return Memory(weights, tokens * per_token, logits, states, cache)


@dataclass(frozen=True)
class Speed:
    """Seconds of a step of every process: its products, and its part of what is moved. moved: bytes in and out."""

    products: float
    moving: float
    moved: float
    examples: float

    @property
    def examples_per_s(self) -> float:
        return self.examples / (self.products + self.moving)


def speed(run: Run, shape: Shape, placement: str, devices: int, of_machine: int, flops: float, network: float) -> Speed:
    """The time of a step, in which products and transfers do not overlap.

    A frozen LLM takes 2 operations per parameter and token forward and 2 backward, one that trains 2 more, and
    recomputation another 2. Word embeddings take none, and the head only those of the target tokens.

    :param flops: operations that one device makes per second, as they are reached, not as they are sold.
    :param network: bytes that one device receives per second.
    """
    passes = 4 + 2 * (run.agent == 'full') + 2 * run.recompute
    body = shape.layers * shape.layer
    head = shape.vocabulary * shape.hidden_size
    products = (passes * body * run.tokens + 4 * head * run.targets * run.prompts) / flops
    sharers = {'none': 1, 'device map': 1, 'hybrid': of_machine, 'full': devices}[placement]
    processes = devices // of_machine if placement == 'device map' else devices
    moved = 0.0
    if sharers > 1:
        gathers = 2 + run.recompute  # forward, backward
        moved += gathers * run.passes * shape.bytes * (sharers - 1) / sharers
    if processes > 1:
        moved += 2 * 4 * trained(run, shape) * (processes - 1) / processes
    return Speed(products, moved / network, moved, processes * run.batchsize * run.turns)
