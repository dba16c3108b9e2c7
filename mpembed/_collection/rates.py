"""The parameters of a collection's updates: those of its optimizers, kept up to date."""

from mpembed import optim
from mpembed._arguments import captures
from mpembed._bindings.device import CallOrder, Stream
from mpembed._collection.storage import Storage
from mpembed.optim import Optimizer


class Rates:
    """Writes the optimizers' parameters where the kernels run, only when a rate changes.

    On the CPU the next backward sends them; on a device the next call, or, once graphs have been
    captured, the setter itself.
    """

    def __init__(self, storage: Storage, calls: CallOrder) -> None:
        self._rules, self._calls = storage.rules, calls
        self._places: dict[int, list[int]] = {}  # of the tables that an optimizer trains, by its id
        tables = [i for group in storage.groups for i in group.plan.tables]
        optimizers = {}
        for place, optimizer in enumerate(storage.settings.optimizers[i] for i in tables):
            if optimizer is not None:
                self._places.setdefault(id(optimizer), []).append(place)
                optimizers[id(optimizer)] = optimizer
        self._optimizers = list(optimizers.values())
        for optimizer in self._optimizers:
            self._set(optimizer)
            optim.listen(optimizer, self)
        self._rules.send(storage.device.stream(None))

    def _set(self, optimizer: Optimizer) -> None:
        rule = *optimizer.kernel_kind(), optimizer.parameters()
        for place in self._places[id(optimizer)]:
            self._rules.set_table(place, *rule)

    def refuse_lr(self) -> None:
        """Raise RuntimeError where graphs of this collection cannot be given another rate now."""
        if self._calls.was_captured:
            with self._calls.inside(_refuse_lr):
                pass

    def set_lr(self, optimizer: Optimizer) -> None:
        """Use an optimizer's learning rate from the next backward on, and in graphs.

        Before the first graph it is the next call that sends it: that need not come at all, and the
        stream of the one before may be gone.
        """
        self._set(optimizer)
        if self._calls.device.synchronous:  # the next backward sends it
            return
        self._calls.later = self._rules.send
        if self._calls.was_captured:
            with self._calls.inside(_refuse_lr):
                pass


def _refuse_lr(on: Stream) -> None:
    raise RuntimeError(f"the learning rate cannot be set {captures.GRAPH}")
