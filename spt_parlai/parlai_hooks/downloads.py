"""Hooks that report data that cannot be downloaded or read in one sentence with the way out."""

from __future__ import annotations

from pathlib import Path

from spt_parlai.errors import UsageError, explained
from spt_parlai.training.resume import resumable_class

ADVICE = {
    'ConvAI2': 'place your own copy with `spt data convai2 --from FOLDER --datapath DATAPATH` and pass -dp DATAPATH',
}


def explain_failed_downloads() -> None:
    """End a failed download in one sentence: which file, from where, and how to do without the network.

    Breaks: without a network ParlAI retries for 15 seconds and ends in a traceback; a file that was half downloaded is
    taken for the whole one by the next command.
    Where: ``DownloadableFile.download_file``, ``parlai/core/build_data.py:96``.
    Safe: a download that succeeds is ParlAI's own, and one that fails raises an error of ParlAI's class; a file that
    the user placed by hand is never deleted.
    Goes: when ParlAI reports a failed download in one sentence and removes what it left.
    """
    import requests
    from parlai.core import build_data
    from parlai.core.build_data import DownloadableFile

    parlai_download = DownloadableFile.download_file

    def download_file(self, dpath):
        file = Path(dpath) / self.file_name
        placed_by_hand = file.exists()
        try:
            if not placed_by_hand and not self.from_google:
                with build_data.get_http_session() as session:  # fails at once where ParlAI would retry for 15 s
                    session.head(self.url, timeout=5)
            parlai_download(self, dpath)
        except (RuntimeError, AssertionError, OSError, requests.exceptions.RequestException) as error:
            if not placed_by_hand:
                file.unlink(missing_ok=True)
            name = Path(dpath).name
            raise explained(
                AssertionError if isinstance(error, AssertionError) else RuntimeError,  # as ParlAI's
                f'{name}: {self.url} could not be downloaded to {dpath} ({type(error).__name__}); '
                f'{ADVICE.get(name, f"put {self.file_name}, not unpacked, into {dpath} by hand")}, '
                'or try -t spt_parlai.tasks.sample, which needs no download.',
            ) from error

    DownloadableFile.download_file = download_file


def explain_unreadable_tasks() -> None:
    """Say in one sentence that a task's files are missing, empty or not in the format that its teacher reads.

    Breaks: a missing file, another encoding or an entry without a label ends in a traceback, and nothing says that a
    file is empty.
    Where: ``_create_task_agents``, ``parlai/core/worlds.py:1381``.
    Safe: teachers that can be built and have an example are returned as ParlAI built them, and so are all teachers of
    an agent of another package. An empty share of an
    evaluation is refused on the first process alone, because the others may have no example of a small fold.
    Goes: when ParlAI's teachers check their files.
    """
    from parlai.core import worlds
    from parlai.core.params import get_model_name
    from parlai.core.teachers import FixedDialogTeacher
    from parlai.utils.data import DatatypeHelper
    from parlai.utils.distributed import is_primary_worker

    parlai_create = worlds._create_task_agents

    def create_task_agents(opt):
        if get_model_name(opt) and resumable_class(opt) is None:
            return parlai_create(opt)
        evaluates = opt['task'] in (opt.get('evaltask') or '').split(',')
        named = f'{"--evaltask" if evaluates else "-t"} {opt["task"]}'
        try:
            agents = parlai_create(opt)
        except FileNotFoundError as error:
            folder = Path(error.filename or '').parent
            there = folder.name == 'ConvAI2' and [*folder.glob('valid_self_original*.txt')]
            way_out = 'use -t convai2:self, which is there' if there else "check the path of the task's data"
            raise UsageError(f'{named}: {error.filename}: no such file; {way_out}.') from error
        except UnicodeDecodeError as error:
            raise UsageError(f'{named}: the data {_data_of(opt)}is not UTF-8 text; convert it to UTF-8.') from error
        except ValueError as error:
            if not str(error).startswith('ParlaiDialogTeacher requires'):
                raise
            raise UsageError(
                f'{named}: {" ".join(str(error).split())}; write the entry as text:…<tab>labels:….'
            ) from error
        checked = is_primary_worker() or DatatypeHelper.is_training(opt['datatype'])
        for teacher in agents if checked else ():
            if isinstance(teacher, FixedDialogTeacher) and teacher.num_examples() == 0:
                raise UsageError(
                    f'{named}: the data {_data_of(opt)}for -dt {opt["datatype"]} holds no example; '
                    "check the task's files."
                )
        return agents

    worlds._create_task_agents = create_task_agents


def _data_of(opt) -> str:
    return f'({opt["fromfile_datapath"]}) ' if opt.get('fromfile_datapath') else ''
