"""Install a user's own copy of ConvAI2 in ParlAI's data folder, so that nothing is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from spt_parlai.errors import UsageError

CONVAI2_VERSION = 'v5.0'
CONVAI2_NEEDED = ('train_self_original', 'valid_self_original')


def install_convai2(source: Path, datapath: Path | None = None, force: bool = False) -> Path:
    """Copy ConvAI2's text files into `<datapath>/ConvAI2` and mark them as built.

    If only one of `X.txt` (with candidates) and `X_no_cands.txt` is there, the other is made from it.

    :return: the folder that now holds the files.
    :raises UsageError: if a file is missing, has another format, or would be replaced without `force`.
    """
    if not source.is_dir():
        raise UsageError(f"--from {source}: no such folder; give the folder that holds ConvAI2's .txt files.")
    files: dict[str, Path] = {}
    for path in sorted(source.rglob('*.txt')):
        if not path.name.startswith(('train_', 'valid_', 'test_')) or not any(
            s in path.name for s in ('self', 'both', 'none')
        ):
            continue
        if path.name in files:
            raise UsageError(
                f'--from {source} holds both {files[path.name]} and {path}: give the folder of one of them.'
            )
        files[path.name] = path
    for name in CONVAI2_NEEDED:
        if f'{name}.txt' not in files and f'{name}_no_cands.txt' not in files:
            raise UsageError(
                f'--from {source}: neither {name}.txt nor {name}_no_cands.txt is there; give the folder that holds '
                'them.'
            )
    for path in files.values():
        _check_format(path)
    target = (datapath or _default_datapath()) / 'ConvAI2'
    present = [p.name for p in target.glob('*.txt')] if target.is_dir() else []
    if present and not force:
        raise UsageError(f'{target} already holds {", ".join(sorted(present)[:3])} …: pass --force to replace them.')
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            if path.resolve() != (target / name).resolve():
                shutil.copyfile(path, target / name)
        for name in CONVAI2_NEEDED:
            plain, bare = target / f'{name}.txt', target / f'{name}_no_cands.txt'
            if bare.name not in files:
                bare.write_text(_without_candidates(plain.read_text(encoding='utf-8')), encoding='utf-8')
            elif plain.name not in files:
                shutil.copyfile(bare, plain)
    except OSError as error:
        raise UsageError(f'{error.filename} cannot be written ({error.strerror}): pass another --datapath.') from error
    from parlai.core.build_data import mark_done

    mark_done(str(target), CONVAI2_VERSION)
    return target


def _check_format(path: Path) -> None:
    """Check that the file is UTF-8 and begins with line number 1, as `1 your persona: …` or a line of dialogue does."""
    try:
        first = path.read_text(encoding='utf-8').partition('\n')[0]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: give ConvAI2's own files.") from error
    if not first.startswith('1 '):
        raise UsageError(
            f'{path} is not in ConvAI2\'s format: its first line starts {first[:30]!r}, not with "1 "; give ConvAI2\'s '
            'own files.'
        )


def _without_candidates(text: str) -> str:
    return ''.join('\t'.join(line.split('\t')[:2]) + '\n' for line in text.splitlines())


def _default_datapath() -> Path:
    from parlai.core.params import ParlaiParser

    return Path(ParlaiParser(True, False).parse_args([])['datapath'])
