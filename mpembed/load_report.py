"""What became of a checkpoint's contents when it was loaded."""

import logging
from dataclasses import dataclass, field

_LOG = logging.getLogger("mpembed")


@dataclass(frozen=True)
class LoadReport:
    """What ``EmbeddingBagCollection.load`` kept of a checkpoint and what it did not.

    Attributes
    ----------
    kept : list of str
        What is as it was saved, bit for bit.
    converted : list of str
        What was rounded into another format, or moved.
    added : list of str
        What is new: the initial rows of a table that has grown, a cache.
    started : list of str
        What was there and has its initial values again.
    dropped : list of str
        What is no longer there.
    changed : list of str
        Settings that are others than those it was saved with, such as a learning rate.
    """

    kept: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = (
            ("kept", self.kept),
            ("converted", self.converted),
            ("added", self.added),
            ("started anew", self.started),
            ("dropped", self.dropped),
            ("changed", self.changed),
        )
        return "\n".join(f"{what}: {'; '.join(lines)}" for what, lines in parts if lines)

    def log(self, path: object) -> None:
        """Tell the logger ``mpembed``: a warning where something was lost."""
        lost = bool(self.started or self.dropped)
        if not (lost or self.converted or self.added or self.changed):
            return
        level = logging.WARNING if lost else logging.INFO
        _LOG.log(level, "%s was loaded with changes\n%s", path, self)
