# The lock of a collection's calls, which a forked child can still take; part of device.pyx.


@cython.no_gc_clear
cdef class CallLock:
    """A reentrant lock; in a forked child it refuses if another thread held it at the fork.

    That thread does not exist in the child: it would never release the lock, and what it was
    changing stays half changed.
    """

    def __init__(self):
        self.renew()
        _locks.add(self)

    cdef int renew(self) except -1:
        lock = threading.RLock()
        self.acquire_lock, self.release_lock = lock.acquire, lock.release
        return 0

    cdef bint acquire(self, bint waits) except -1:
        """Return whether the lock was taken: always where the thread waits for it."""
        if not self.acquire_lock(waits):
            return False
        if self.torn:
            self.release_lock()
            raise RuntimeError(
                "this process was forked while another thread was inside the collection, which may "
                "be half changed here: load a checkpoint, or fork while no call is running")
        return True

    cdef int release(self) except -1:
        self.release_lock()
        return 0

    def after_fork(self):
        """Renew or refuse, in the child, which has one thread."""
        if self.acquire_lock(False):
            self.release_lock()
        else:
            self.renew()
            self.torn = True


_locks = weakref.WeakSet()


def _after_fork():
    for lock in list(_locks):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
