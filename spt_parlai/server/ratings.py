"""Ratings of replies, one JSON object a line."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spt_parlai.dialogue.messages import well_formed
from spt_parlai.errors import UsageError


class Ratings:
    """A file that ratings are appended to.

    :raises UsageError: if it cannot be written.
    """

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open('a').close()
        except OSError as error:
            raise UsageError(f'--ratings {file} cannot be written ({error.strerror}); give another file.') from error

    def add(self, rating: dict[str, Any]) -> None:
        """Append a rating with the time."""
        line = json.dumps(well_formed({'time': datetime.now(UTC).isoformat(timespec='seconds'), **rating}))
        with self._lock, self.file.open('a', encoding='utf-8') as file:
            file.write(line + '\n')
