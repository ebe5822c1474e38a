"""Batches from background workers (`--num-workers`): the same batches, counts and epochs as without workers.

A worker is a process that draws messages and makes batches of them; the training process takes them from a queue. An
agent that is not a `ResumableAgent`, such as ParlAI's own, gets ParlAI's batches and counts.
"""

from __future__ import annotations

from parlai.core import worlds
from parlai.core.metrics import SumMetric
from parlai.core.teachers import ChunkTeacher
from parlai.core.worlds import BackgroundDriverWorld, BackgroundWorkerDynamicBatchWorld, BatchWorld, DynamicBatchWorld
from parlai.utils import distributed
from parlai.utils.data import DatatypeHelper

from spt_parlai.training.resume import ResumableAgent
from spt_parlai.training.seeding import seed_everything


class BackgroundBatchWorld(BatchWorld):
    """The batches that a `BatchWorld` gives the model, put into the queue in place of the model's acts."""

    def __init__(self, opt, model_agent=None, process_queue=None):
        super().__init__(opt, _task_world(opt, model_agent))
        self.queue = process_queue
        _seed(opt)

    def batch_act(self, agent_idx, batch_observation):
        if agent_idx == 0:  # the teacher
            return super().batch_act(agent_idx, batch_observation)
        if _is_due(self):
            batch = self.get_model_agent().batchify(batch_observation)
            self.queue.put((self.opt['background_index'], batch))
        return [{} for _ in batch_observation]


def _task_world(opt, model_agent):
    """The world of a single message, as in the training process."""
    several = ',' in opt['task']
    return worlds.MultiWorld(opt, [model_agent]) if several else worlds.create_task_world(opt, [model_agent])


def _seed(opt) -> None:
    """Seed a worker when its world is built, as the training process is seeded then."""
    if opt.get('seed') is not None:
        number = opt['background_index'] if DatatypeHelper.should_shuffle(opt['datatype']) else 0
        seed_everything(opt['seed'], distributed.get_rank() + number * distributed.num_workers())


def _is_due(world) -> bool:
    """Whether the batch that a worker has drawn is its own.

    Where the data has an order, all workers draw the same batches, and each keeps every n-th. Otherwise they draw
    different ones. A `ChunkTeacher` divides its data among the workers itself.
    """
    opt = world.opt
    if DatatypeHelper.should_shuffle(opt['datatype']) or _divides_its_data(world):
        return True
    return world.total_parleys % opt['num_workers'] == opt['background_index']


def _divides_its_data(world) -> bool:
    return isinstance(world.get_task_agent(), ChunkTeacher)


def _next_batch(world):
    """The next batch for the training process: from each worker in turn, so that their speed does not matter."""
    if _divides_its_data(world):  # a worker may have no data at all
        return world._queue_get()[1]
    turn, waiting = world.total_parleys % world.opt['num_workers'], world._batch_buffer
    while not any(index == turn for index, _ in waiting):
        waiting.append(world._queue_get())
    return waiting.pop([index for index, _ in waiting].index(turn))[1]


def same_batches_from_workers() -> None:
    """Let workers make the batches that a run without workers makes, from data that differs between them.

    Breaks: all workers begin with one state of the random generators, so that each dialogue is drawn once by every
    worker; data with an order is repeated by every worker too. Batches that are larger than four are cut to a multiple
    of four, and long ones to fewer messages, also without ``--dynamic-batching``. Several tasks are drawn in another
    way than without workers.
    Where: ``BackgroundWorkerDynamicBatchWorld``, ``parlai/core/worlds.py:1343``.
    Safe: ParlAI's loop runs, on the worlds that it uses without workers. A single worker draws what the training
    process would have drawn.
    Goes: when ParlAI seeds its workers and lets them use a ``BatchWorld``.
    """
    parlai_launch = BackgroundWorkerDynamicBatchWorld.launch_process.__func__
    parlai_init = BackgroundWorkerDynamicBatchWorld.__init__
    parlai_handle_batch = BackgroundWorkerDynamicBatchWorld.handle_batch

    def launch_process(cls, index, opt, model_agent, process_queue):
        if isinstance(model_agent, ResumableAgent) and not opt.get('dynamic_batching'):
            cls = BackgroundBatchWorld
        parlai_launch(cls, index, opt, model_agent, process_queue)

    def init(self, opt, model_agent=None, process_queue=None):
        if not isinstance(model_agent, ResumableAgent):
            parlai_init(self, opt, model_agent, process_queue)
            return
        self.process_queue, self.index = process_queue, opt['background_index']
        DynamicBatchWorld.__init__(self, opt, _task_world(opt, model_agent))
        _seed(opt)

    def handle_batch(self, batch):
        if isinstance(self.world.get_model_agent(), ResumableAgent) and not _is_due(self):
            return [{} for _ in batch]
        return parlai_handle_batch(self, batch)

    BackgroundWorkerDynamicBatchWorld.launch_process = classmethod(launch_process)
    BackgroundWorkerDynamicBatchWorld.__init__ = init
    BackgroundWorkerDynamicBatchWorld.handle_batch = handle_batch


def count_messages_of_workers() -> None:
    """Count the messages of a worker's batch as ParlAI counts those of any other, and take the workers in turn.

    Breaks: epochs are counted in examples of a batch, which are turns where a message is a whole dialogue, so that a
    run ends after a fraction of its epochs; ``exs`` lacks one for each message; which worker is faster decides the
    order of the batches, so that a run cannot be resumed exactly.
    Where: ``BackgroundDriverWorld.parley``, ``parlai/core/worlds.py:1318``.
    Safe: what ParlAI's method does happens here too.
    Goes: when ParlAI counts messages there, as in ``DynamicBatchWorld``.
    """
    parlai_parley = BackgroundDriverWorld.parley

    def parley(self):
        agent = self.get_model_agent()
        if not isinstance(agent, ResumableAgent):
            parlai_parley(self)
            return
        batch = _next_batch(self)
        for response in agent.batch_act(batch):
            self.metrics._consume_user_metrics(response)
        messages = len(batch.valid_indices)
        self.metrics.add('exs', SumMetric(messages))  # a teacher's count, which a worker keeps to itself
        self.total_parleys += 1
        self.total_exs += messages

    BackgroundDriverWorld.parley = parley
