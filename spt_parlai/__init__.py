"""Selective Prompt Tuning as a ParlAI agent (arXiv 2406.18187)."""

import warnings

from spt_parlai import _requirements

__version__ = '0.1.0'

warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # ParlAI imports it, on purpose
_requirements.check()

from spt_parlai import compat  # noqa: E402  (after the check: it needs a ParlAI that can be imported)

compat.apply()

from spt_parlai import datasets  # noqa: E402
from spt_parlai.metrics import teachers  # noqa: E402
from spt_parlai.training import resume  # noqa: E402

datasets.install_download_advice()
datasets.install_reading_advice()
teachers.install()
resume.install()
