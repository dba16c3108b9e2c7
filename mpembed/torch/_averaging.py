"""Averages of models with tables: FP32 weights in the copy that PyTorch's AveragedModel makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import swa_utils

from mpembed.torch._module import TableModule
from mpembed.torch._restore import restore, weight_key
from mpembed.torch._whole_tables import read_table


class AveragedModel(swa_utils.AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` of a model with tables.

    The copy that it averages in, ``module``, has PyTorch's embeddings (see `restore`) with FP32
    weights, or of each module's `output_dtype`. So an average is not rounded into the tables'
    format, and ``module.state_dict()`` loads into the original model and into the converted one.

    ``torch.optim.swa_utils.AveragedModel(model)`` of a model with tables makes one of this class.

    Parameters
    ----------
    model, device, avg_fn, multi_avg_fn, use_buffers
        As in ``torch.optim.swa_utils.AveragedModel``.

    Raises
    ------
    ValueError
        For modules that `restore` refuses, such as an `EmbeddingBagCollection`.
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Average the model's parameters, and the rows of its tables as they are now.

        Parameters
        ----------
        model : torch.nn.Module
            The model that this was made of. For the time of the call all its rows are in memory
            once more, in FP32.
        """
        source: Any = _WithRows(model)
        averaged = len(list(self.module.parameters()))
        if len(source) != averaged:
            raise ValueError(
                f"model has {len(source)} parameters and tables, its average {averaged}: pass the "
                "model that the AveragedModel was made of"
            )
        super().update_parameters(source)


class _WithRows:
    """What `AveragedModel.update_parameters` asks of a model, with the rows of its tables."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sources: dict[Any, nn.Parameter | TableModule] = {}
        for module in model.modules():
            if isinstance(module, TableModule):
                self._sources.setdefault(weight_key(module), module)
            else:
                self._sources |= {id(one): one for one in module.parameters(recurse=False)}

    def __len__(self) -> int:
        return len(self._sources)

    def parameters(self) -> Iterator[Tensor]:
        """Yield the parameters in the order of those of a restored copy."""
        for one in self._sources.values():
            if isinstance(one, TableModule):
                (table,) = one.tables.tables
                yield read_table(one.tables, table, one.output_dtype)
            else:
                yield one

    def buffers(self) -> Iterator[Tensor]:
        """Return the model's buffers; tables have none."""
        return self._model.buffers()


def _restore_copy(parent: nn.Module, name: str, child: nn.Module | None) -> nn.Module | None:
    """Give an AveragedModel that is being made FP32 weights in the place of tables.

    PyTorch calls this for every submodule that a module gets, and takes what is returned instead.
    """
    if not isinstance(parent, swa_utils.AveragedModel) or child is None:
        return None
    if not any(isinstance(one, TableModule) for one in child.modules()):
        return None
    if type(parent) is swa_utils.AveragedModel:
        parent.__class__ = AveragedModel
    elif not isinstance(parent, AveragedModel):
        raise TypeError(
            f"{type(parent).__name__} averages parameters, and the model has tables, which are "
            "none: derive it from mpembed.torch.AveragedModel"
        )
    if hasattr(parent, "n_averaged"):  # made before: this is no copy of its own
        raise ValueError(
            f"{name} of an AveragedModel must have no tables: set it to "
            "mpembed.torch.restore(copy.deepcopy(model))"
        )
    return restore(child)


register_module_module_registration_hook(_restore_copy)  # type: ignore[arg-type]
