"""Every assignment to a ParlAI object, installed from one ordered list."""

import warnings

from spt_parlai.parlai_hooks import requirements


def install() -> None:
    """Check that ParlAI can be imported here, then install every hook."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # ParlAI imports it, on purpose
    requirements.check()
    from spt_parlai.parlai_hooks import downloads, libraries, teachers
    from spt_parlai.training import resume

    libraries.apply()
    downloads.install_download_advice()
    downloads.install_reading_advice()
    teachers.install()
    resume.install()
