"""The lock of a collection, which a forked child can still take."""

import os
import threading
import weakref


class ForkAwareLock:
    """A reentrant lock; in a forked child it refuses if another thread held it at the fork.

    That thread does not exist in the child: it would never release the lock, and what it was
    changing stays half changed.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._torn = False
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._torn:
            self._lock.release()
            raise RuntimeError(
                "this process was forked while another thread was inside the collection, which may "
                "be half changed here: load a checkpoint, or fork while no call is running"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """Renew or refuse, in the child, which has one thread."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()
            self._torn = True


_locks: weakref.WeakSet[ForkAwareLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
