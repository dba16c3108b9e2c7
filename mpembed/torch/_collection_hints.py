"""What a module's collection has and the module has not: an error that says where it is."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn

from mpembed.collection import EmbeddingBagCollection


class CollectionHints(nn.Module):
    """A module that says of its collection's methods where they are."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Find parameters and modules."""
        try:
            found: Tensor | nn.Module = super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or not hasattr(EmbeddingBagCollection, name):
                raise
            if hasattr(type(self), name):  # a property that has failed
                raise
            raise AttributeError(
                f"{error}: the collection has it, as module.tables.{name}", name=name, obj=self
            ) from None
        return found

    @classmethod
    def load(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a file has a collection, and no module's own options."""
        raise TypeError(
            f"{cls.__name__}.load is not supported: load the file of tables.save(path) with "
            "mpembed.EmbeddingBagCollection.load(path), and make a module of it with "
            f"{cls.__name__}.from_collection(collection)"
        )
