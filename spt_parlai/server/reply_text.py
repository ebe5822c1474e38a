"""The text of one reply as it grows: what can be shown already, and whether it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = '\ufffd'  # a character of which only some bytes are there


class ReplyText:
    """Collects the tokens of a reply and hands out its text piece by piece.

    A piece is held back as long as it may belong to a stop string, an incomplete character or white space at the end.

    :param decode: token ids → text.
    :param stops: the reply ends before the first of these strings.
    :param limit: the most tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], limit: int):
        self._decode = decode
        self.stops = [stop for stop in stops if stop]
        self.limit = limit
        self.ids: list[int] = []
        self.text = ''  # the whole reply, once it has ended
        self._shown = ''
        self.finish_reason: str | None = None  # 'stop' or 'length', once the reply has ended

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown since the last call. The reply may have ended then."""
        self.ids.append(token)
        text = self._decoded()
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            return self._end(text[: min(ends)], 'stop')
        if len(self.ids) >= self.limit:
            return self._end(text, 'length')
        return self._show(text[: self._certain(text)])

    def end(self) -> str:
        """The end token was chosen; returns the rest of the text."""
        return self._end(self._decoded(), 'stop')

    def _decoded(self) -> str:
        return self._decode(self.ids).lstrip()

    def _end(self, text: str, reason: str) -> str:
        self.finish_reason, self.text = reason, text.rstrip()
        return self._show(self.text)

    def _show(self, text: str) -> str:
        if not text.startswith(self._shown):  # bytes that are no character have changed what was shown before them
            return ''
        piece = text[len(self._shown) :]
        self._shown = text
        return piece

    def _certain(self, text: str) -> int:
        """The length of the beginning of a text that no further token changes."""
        held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return len(text[: len(text) - held].rstrip().rstrip(_INCOMPLETE).rstrip())
