"""Install a user's own copy of ConvAI2 in ParlAI's data folder, so that nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spt_parlai.errors import UsageError, shorten
from spt_parlai.text_files import read_lines

CONVAI2_VERSION = 'v5.0'
CONVAI2_NEEDED = ('train_self_original', 'valid_self_original')


def install_convai2(source: Path, datapath: Path | None = None, force: bool = False) -> Path:
    """Copy ConvAI2's text files into `<datapath>/ConvAI2` and mark them as built.

    Every line of every file is checked before anything is written. The copies have no byte order mark, and their lines
    end in "\\n". If only one of `X.txt` (with candidates) and `X_no_cands.txt` is there, the other is made from it.

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
        check_dialogues(path)
    target = (datapath or _default_datapath()) / 'ConvAI2'
    present = [p.name for p in target.glob('*.txt')] if target.is_dir() else []
    if present and not force:
        raise UsageError(f'{target} already holds {", ".join(sorted(present)[:3])} …: pass --force to replace them.')
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            _write(target / name, read_lines(path))
        for name in CONVAI2_NEEDED:
            plain, bare = target / f'{name}.txt', target / f'{name}_no_cands.txt'
            if bare.name not in files:
                _write(bare, ['\t'.join(line.split('\t')[:2]) for line in read_lines(plain)])
            elif plain.name not in files:
                _write(plain, read_lines(bare))
    except OSError as error:
        raise UsageError(f'{error.filename} cannot be written ({error.strerror}): pass another --datapath.') from error
    from parlai.core.build_data import mark_done

    mark_done(str(target), CONVAI2_VERSION)
    return target


def check_dialogues(path: str | Path) -> None:
    """Check every line of a file in ConvAI2's format, as ParlAI's `FbDeprecatedDialogTeacher` reads it.

    A line is `N text` or `N text<tab>reply<tab>reward<tab>candidates`. N is 1 in the first line of a dialogue and grows
    in it.

    :raises UsageError: that names the first line which is not.
    """
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read ({error}): give ConvAI2's own files.") from error
    last = 0
    for number, line in enumerate(lines, 1):
        if problem := _problem_of(line, last):
            raise UsageError(
                f"{path} is not in ConvAI2's format: line {number}, {shorten(line)}, {problem}; correct it, or give "
                "ConvAI2's own files."
            )
        last = int(line.split()[0]) if line.strip() else last
    if not last:
        raise UsageError(f"{path} is not in ConvAI2's format: it is empty; give ConvAI2's own files.")


def _problem_of(line: str, last: int) -> str | None:
    """What ParlAI's teacher would stumble over or misread in a line; `last` is the number in the line before it."""
    line = line.strip()
    number, _, text = line.partition(' ')
    reward = (text.split('\t') + ['', ''])[2].strip()
    if not line:
        return None  # the teacher skips it
    if not last and number != '1':
        return 'does not start with "1 "'
    if not (number.isascii() and number.isdigit()):
        return 'does not start with a number and a space, as if the line before it were broken in two'
    if last and number != '1' and int(number) <= last:
        return f'has a number that is neither 1 nor above {last}, the number before it'
    if '\r' in line:
        return 'contains a carriage return, which would end the line'
    try:
        float(reward or 0)
    except ValueError:
        return f'has {shorten(reward)} where the reward is, which must be a number or empty'
    return None


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write the lines, at once or not at all: `path` may be the file of the user's that they were read from."""
    part = path.with_suffix('.part')
    part.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', newline='\n')
    part.replace(path)


def _default_datapath() -> Path:
    from parlai.core.params import ParlaiParser

    return Path(ParlaiParser(True, False).parse_args([])['datapath'])
