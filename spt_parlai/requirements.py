"""Check before anything else that ParlAI can be imported here, and say in one sentence why if not."""

from __future__ import annotations

from importlib import metadata, util

INSTALL = (
    'run `make install`, or `pip install --no-deps -r requirements.lock` in the environment you use (see the README)'
)


def check() -> None:
    """Raises UsageError if ParlAI is missing or an installed version is known to break it."""
    problem = _problem()
    if problem:
        from spt_parlai.errors import UsageError

        raise UsageError(f'spt_parlai cannot start: {problem}; {INSTALL}.')


def _problem() -> str | None:
    if util.find_spec('parlai') is None:
        return 'ParlAI 1.7.2 is not installed (plain `pip install parlai` would pull in incompatible pins)'
    if util.find_spec('pkg_resources') is None:
        found = _version('setuptools')
        have = f'setuptools {found} no longer has it' if found else 'setuptools is not installed'
        return f'ParlAI imports pkg_resources, and {have} (it needs setuptools < 82)'
    if util.find_spec('nltk') is None:
        return "nltk is not installed, and ParlAI's BLEU fails without it"
    for package, needed in (('torch', (2, 11)), ('transformers', (5,))):
        version = _version(package)
        if version is None:
            return f'{package} is not installed'
        if tuple(int(p) for p in version.split('+')[0].split('.')[: len(needed)]) < needed:
            return f'{package} {version} is older than {".".join(map(str, needed))}'
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
