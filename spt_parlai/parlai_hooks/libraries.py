"""Hooks that let ParlAI 1.7.2 run on current libraries.

ParlAI's last release is older than torch 2.7, NumPy 1.24 and much else. ParlAI loads its scripts before it loads an
agent given by ``--model``, so the hooks change modules that are already loaded. They import ParlAI inside the
functions: importing this module costs nothing.
"""

import warnings


def silence_broadcast_buffers() -> None:
    """Silence a warning of torch's about ParlAI's call, because the user can do nothing about it.

    Breaks: nothing; every distributed run prints ``broadcast_buffers is deprecated``.
    Where: ``parlai/core/torch_generator_agent.py:584``, with torch 2.13.
    Safe: the argument keeps its effect.
    Goes: when ParlAI passes ``forward_sync_buffers``.
    """
    warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')


def patch_reduce_on_plateau() -> None:
    """Build torch's ``ReduceLROnPlateau`` without ``verbose``.

    Breaks: ``TypeError`` at start-up, in training and in evaluation, because torch
    2.7 removed the argument and ``reduceonplateau`` is ParlAI's default scheduler.
    Where: ``parlai/nn/lr_scheduler.py:338``.
    Safe: the argument only printed a line; ParlAI's log reports the rate anyway.
    Goes: when ParlAI stops passing ``verbose``.
    """
    from parlai.nn.lr_scheduler import ParlAILRScheduler, ReduceOnPlateauLRScheduler
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    def init(self, optimizer, patience, decay, warmup_updates, warmup_rate):
        ParlAILRScheduler.__init__(self, warmup_updates, warmup_rate)
        self.scheduler = ReduceLROnPlateau(optimizer, 'min', factor=decay, patience=patience)

    ReduceOnPlateauLRScheduler.__init__ = init


def patch_delayed_nucleus_beam() -> None:
    """Give ``DelayedNucleusBeamSearch`` the methods it borrows.

    Breaks: ``AttributeError`` with ``--inference delayednucleusbeam``, because its
    ``select_paths`` calls ``NucleusSampling.select_paths`` on itself, which uses
    ``get_mask`` and ``update_p``, and it inherits neither.
    Where: ``parlai/core/torch_generator_agent.py:1958``.
    Safe: both methods need only ``self.p``, which the class has.
    Goes: when ParlAI's class has the methods.
    """
    from parlai.core.torch_generator_agent import (
        DelayedNucleusBeamSearch,
        NucleusSampling,
    )

    DelayedNucleusBeamSearch.get_mask = NucleusSampling.get_mask
    DelayedNucleusBeamSearch.update_p = NucleusSampling.update_p


def patch_rouge_tokenizer() -> None:
    """Let ROUGE work without nltk's downloaded sentence model.

    Breaks: the ``rouge`` metrics vanish, with one warning, unless nltk's ``punkt``
    data is installed: py-rouge calls ``nltk.word_tokenize``, which first splits the
    text into sentences.
    Where: ``RougeMetric.compute_many``, ``parlai/core/metrics.py:748``.
    Safe: ParlAI removes all punctuation before it calls py-rouge, so there is no
    sentence to split off, and ``preserve_line`` skips only that split; the words
    come from the same nltk tokenizer. The evaluator is ParlAI's own otherwise.
    Goes: when py-rouge no longer needs downloaded data.
    """
    from parlai.core.metrics import RougeMetric

    parlai_compute_many = RougeMetric.compute_many

    def compute_many(guess, answers, measure='r'):
        # Done at the first use, as importing rouge and nltk takes a second or two.
        if RougeMetric._evaluator is None:
            RougeMetric._evaluator = _rouge_evaluator()
        return parlai_compute_many(guess, answers, measure)

    RougeMetric.compute_many = staticmethod(compute_many)


def _rouge_evaluator():
    """Return ParlAI's ROUGE evaluator with a tokenizer that needs no data.

    Returns ``None`` if py-rouge is not installed; ParlAI then leaves ROUGE out.
    """
    try:
        import nltk
        import rouge
    except ImportError:
        return None
    evaluator = rouge.Rouge(metrics=['rouge-n', 'rouge-l'], max_n=2)
    # py-rouge calls this static method through the instance.
    evaluator.tokenize_text = lambda text, language='english': nltk.word_tokenize(text, language, preserve_line=True)
    return evaluator


def patch_txt2vec_array() -> None:
    """Return an array from ``txt2vec(text, numpy.ndarray)``.

    Breaks: ``AttributeError``, because NumPy 1.24 removed ``numpy.int``.
    Where: ``parlai/core/dict.py:754``.
    Safe: ``numpy.int`` was the built-in ``int``, which is used here.
    Goes: when ParlAI uses ``int``.
    """
    import numpy as np
    from parlai.core.dict import DictionaryAgent

    parlai_txt2vec = DictionaryAgent.txt2vec

    def txt2vec(self, text, vec_type=list):
        if vec_type is np.ndarray:
            return np.array(parlai_txt2vec(self, text, list), dtype=int)
        return parlai_txt2vec(self, text, vec_type)

    DictionaryAgent.txt2vec = txt2vec


def patch_dynamic_batching() -> None:
    """Tell dynamic batching the limits that the model works with.

    Breaks: ``ValueError: You must use --text-truncate`` with ``--dynamic-batching``
    in ``eval_model`` and in a resumed run, although the model has limits: they are
    in the agent's options, which then differ from the command's.
    Where: ``parlai/core/worlds.py:1022``.
    Safe: limits given to the command stay; an agent without limits is still refused.
    Goes: when ParlAI asks the agent.
    """
    from parlai.core.opt import Opt
    from parlai.core.worlds import DynamicBatchWorld

    parlai_init = DynamicBatchWorld.__init__

    def init(self, opt, world):
        limits = {}
        if not (opt.get('truncate') or -1) > 0:
            agent = world.get_model_agent()
            for name in ('text_truncate', 'label_truncate'):
                if not (opt.get(name) or -1) > 0 and getattr(agent, name, None):
                    limits[name] = getattr(agent, name)
        parlai_init(self, Opt({**opt, **limits}), world)

    DynamicBatchWorld.__init__ = init


def explain_options_of_another_agent() -> None:
    """Say in one sentence that the agent does not have an option of the ``-o`` file.

    Breaks: ``RuntimeError``, with a traceback and a message about "the target opt",
    where a preset of one agent is given together with ``-m`` another agent.
    Where: ``parlai/core/params.py:1038``.
    Safe: it stays a ``RuntimeError``, and the agents of other packages keep ParlAI's; ``--allow-missing-init-opts``
    works as before.
    Goes: when ParlAI exits with a message there, as it does for the command line.
    """
    from parlai.core.params import ParlaiParser

    from spt_parlai.errors import explained
    from spt_parlai.training.resume import resumable_class

    load_opts = ParlaiParser._load_opts

    def load_or_explain(self, opt):
        try:
            load_opts(self, opt)
        except RuntimeError as error:
            reason, _, name = str(error).rpartition(': ')
            if not reason.startswith('Trying to set opt from file') or resumable_class(opt) is None:
                raise
            raise explained(
                RuntimeError,
                f'--init-opt {opt["init_opt"]}: {name} is no option of -m {opt.get("model")}; give a preset of this '
                f'agent, take {name} out of the file, or add --allow-missing-init-opts true.',
            ) from error

    ParlaiParser._load_opts = load_or_explain
