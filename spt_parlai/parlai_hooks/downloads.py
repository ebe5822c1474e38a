"""A user's own ConvAI2 files → ParlAI's datapath, and what to say when a data set cannot be downloaded or read."""

from __future__ import annotations

from pathlib import Path

from spt_parlai.errors import UsageError

ADVICE = {
    'ConvAI2': 'place your own copy with `spt data convai2 --from FOLDER --datapath DATAPATH` and pass -dp DATAPATH',
}


def install_download_advice() -> None:
    """Make ParlAI's failed downloads end in one sentence: what, from where, and how to do without the network."""
    import requests
    from parlai.core import build_data
    from parlai.core.build_data import DownloadableFile

    download = DownloadableFile.download_file
    if getattr(DownloadableFile, '_gives_advice', False):
        return
    DownloadableFile._gives_advice = True

    def download_file(self, dpath):
        file = Path(dpath) / self.file_name
        placed_by_hand = file.exists()
        try:
            if not placed_by_hand and not self.from_google:
                with build_data.get_http_session() as session:  # no network: known at once, not after 15 s of retries
                    session.head(self.url, timeout=5)
            download(self, dpath)
        except (RuntimeError, AssertionError, OSError, requests.exceptions.RequestException) as error:
            if not placed_by_hand:  # half a file would be taken for the whole one next time
                file.unlink(missing_ok=True)
            name = Path(dpath).name
            raise UsageError(
                f'{name}: {self.url} could not be downloaded to {dpath} ({type(error).__name__}); '
                f'{ADVICE.get(name, f"put the files of {self.file_name} into {dpath} by hand")}, '
                'or try -t spt_parlai.tasks.sample, which needs no download.'
            ) from error

    DownloadableFile.download_file = download_file


def install_reading_advice() -> None:
    """Make a task whose files are missing, empty or not what its teacher reads end in one sentence."""
    from parlai.core import worlds
    from parlai.core.teachers import FixedDialogTeacher
    from parlai.utils.data import DatatypeHelper
    from parlai.utils.distributed import is_primary_worker

    create = worlds._create_task_agents
    if getattr(create, '_gives_advice', False):
        return

    def create_task_agents(opt):
        try:
            agents = create(opt)
        except FileNotFoundError as error:
            raise UsageError(
                f"-t {opt['task']}: {error.filename}: no such file; check the path of the task's data."
            ) from error
        except UnicodeDecodeError as error:
            raise UsageError(
                f'-t {opt["task"]}: the data {_data_of(opt)}is not UTF-8 text; convert it to UTF-8.'
            ) from error
        except ValueError as error:
            if not str(error).startswith('ParlaiDialogTeacher requires'):
                raise
            raise UsageError(
                f'-t {opt["task"]}: {" ".join(str(error).split())}; write the entry as text:…<tab>labels:….'
            ) from error
        # The first process has a share of every evaluation; another one's may be empty.
        checked = is_primary_worker() or DatatypeHelper.is_training(opt['datatype'])
        for teacher in agents if checked else ():
            if isinstance(teacher, FixedDialogTeacher) and teacher.num_examples() == 0:
                raise UsageError(
                    f"-t {opt['task']}: the data {_data_of(opt)}for -dt {opt['datatype']} holds no example; check the task's files."
                )
        return agents

    create_task_agents._gives_advice = True
    worlds._create_task_agents = create_task_agents


def _data_of(opt) -> str:
    return f'({opt["fromfile_datapath"]}) ' if opt.get('fromfile_datapath') else ''
