"""A user's own ConvAI2 files → ParlAI's datapath, and what to say when a data set cannot be downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from spt_parlai.errors import UsageError

CONVAI2_VERSION = 'v5.0'
CONVAI2_NEEDED = ('train_self_original', 'valid_self_original')
ADVICE = {
    'ConvAI2': 'place your own copy with `spt data convai2 --from FOLDER --datapath DATAPATH` and pass -dp DATAPATH',
}


def install_download_advice() -> None:
    """Make ParlAI's failed downloads end in one sentence: what, from where, and how to do without the network."""
    import requests
    from parlai.core.build_data import DownloadableFile

    download = DownloadableFile.download_file
    if getattr(DownloadableFile, '_gives_advice', False):
        return
    DownloadableFile._gives_advice = True

    def download_file(self, dpath):
        try:
            download(self, dpath)
        except (RuntimeError, AssertionError, OSError, requests.exceptions.RequestException) as error:
            name = Path(dpath).name
            raise UsageError(
                f'{name}: {self.url} could not be downloaded to {dpath} ({type(error).__name__}); '
                f'{ADVICE.get(name, f"put the files of {self.file_name} into {dpath} by hand")}, '
                'or try -t spt_parlai.tasks.sample, which needs no download.'
            ) from error

    DownloadableFile.download_file = download_file


def install_convai2(source: Path, datapath: Path | None = None, force: bool = False) -> Path:
    """Copy ConvAI2's text files into `<datapath>/ConvAI2` and mark them as built.

    Where only one of `X.txt` (with candidates) and `X_no_cands.txt` is given, the one is made from the other.

    :return: the folder installed into. Raises UsageError for a missing file, a wrong format or files in the way.
    """
    if not source.is_dir():
        raise UsageError(f'--from {source}: no such folder; give the folder that holds ConvAI2\'s .txt files.')
    files = {p.name: p for p in sorted(source.rglob('*.txt')) if 'self' in p.name or 'both' in p.name or 'none' in p.name}
    for name in CONVAI2_NEEDED:
        if f'{name}.txt' not in files and f'{name}_no_cands.txt' not in files:
            raise UsageError(f'--from {source}: neither {name}.txt nor {name}_no_cands.txt is there.')
    for path in files.values():
        _check_format(path)
    target = (datapath or _default_datapath()) / 'ConvAI2'
    present = [p.name for p in target.glob('*.txt')] if target.is_dir() else []
    if present and not force:
        raise UsageError(f'{target} already holds {", ".join(sorted(present)[:3])} …: pass --force to replace them.')
    target.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        if path.resolve() != (target / name).resolve():
            shutil.copyfile(path, target / name)
    for name in CONVAI2_NEEDED:
        plain, bare = target / f'{name}.txt', target / f'{name}_no_cands.txt'
        if not bare.exists():
            bare.write_text(_without_candidates(plain.read_text(encoding='utf-8')), encoding='utf-8')
        elif not plain.exists():
            shutil.copyfile(bare, plain)
    from parlai.core.build_data import mark_done

    mark_done(str(target), CONVAI2_VERSION)
    return target


def _check_format(path: Path) -> None:
    """ConvAI2's first line is `1 your persona: …` (or a dialogue line where there are no personas)."""
    with path.open(encoding='utf-8', errors='replace') as file:
        first = file.readline()
    if not first.startswith('1 '):
        raise UsageError(f'{path} is not in ConvAI2\'s format: its first line starts {first[:30]!r}, not with "1 ".')


def _without_candidates(text: str) -> str:
    return ''.join('\t'.join(line.split('\t')[:2]) + '\n' for line in text.splitlines())


def _default_datapath() -> Path:
    from parlai.core.params import ParlaiParser

    return Path(ParlaiParser(True, False).parse_args([])['datapath'])
