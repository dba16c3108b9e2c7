"""DeepCTR-Torch's models, trained by its own `fit`; penalties on embeddings are off."""

from __future__ import annotations

import sys
from inspect import signature
from types import ModuleType
from typing import Any

import numpy as np
from models.cases import At, Case, Result, Sizes, Training
from models.click_data import DENSE, FIELDS, HISTORY, Clicks, clicks
from models.tables import RATES, convert, count_embeddings
from models.torchfm_models import torch_optimizer
from numpy.typing import NDArray

_DIM = 8
_SPARSE = (  # models of linear and of deep columns
    *("WDL", "DeepFM", "xDeepFM", "AFM", "DIFM", "IFM", "AutoInt", "DCN", "DCNMix"),
    *("FiBiNET", "NFM", "ONN", "CCPM", "AFN"),
)
_DEEP = ("PNN",)
_TASKS = ("SharedBottom", "ESMM", "MMOE", "PLE")
_HISTORY = ("DIN", "DIEN")

#: Settings of further cases: name, model, settings. With "decay" the library's default penalties
#: on weights stay: they are computed from the weights before convert, which the model still holds.
_MORE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("PNN_outer", "PNN", {"use_outter": True}),
    ("DCN_matrix", "DCN", {"cross_parameterization": "matrix"}),
    ("DIEN_negatives", "DIEN", {"use_negsampling": True, "gru_type": "AUGRU"}),
    ("DeepFM_sequence", "DeepFM", {}),
    ("DeepFM_decay", "DeepFM", {"decay": True}),
    ("DIN_decay", "DIN", {"decay": True}),
)
_PENALTIES = ("l2_reg_embedding", "l2_reg_linear")


def cases(sizes: Sizes) -> list[Case]:
    """Return a case for each model, and some with other settings."""
    names = (*_SPARSE, "MLR", *_DEEP, *_TASKS, *_HISTORY)
    found = [Case("deepctr", name, name) for name in names]
    return found + [Case("deepctr", *one) for one in _MORE]


def _columns(case: Case) -> list[Any]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    columns: list[Any] = [SparseFeat(name, size, _DIM) for name, size in FIELDS.items()]
    if case.model not in ("AFM", "CCPM"):
        columns += [DenseFeat(f"dense{i}", 1) for i in range(DENSE)]
    if case.model in _HISTORY or case.name.endswith("sequence"):
        names = ["hist_item"]
        if case.settings.get("use_negsampling"):
            names.append("neg_hist_item")
        for name in names:
            item = SparseFeat(name, FIELDS["item"], _DIM, embedding_name="item")
            columns.append(VarLenSparseFeat(item, HISTORY, "mean", "length"))
    return columns


def _make(training: Training) -> Any:
    import deepctr_torch.models as library

    case, columns = training.case, _columns(training.case)
    cls = getattr(library, case.model)
    settings = {**case.settings, "seed": training.seed}
    if not settings.pop("decay", False):
        taken = signature(cls).parameters
        settings |= {name: 0.0 for name in _PENALTIES if name in taken}
    if case.model in _SPARSE:
        return cls(columns, columns, **settings)
    if case.model in _HISTORY:
        return cls(columns, ["item"], **settings)
    return cls(columns, **settings)


def _inputs(data: Clicks) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {
        name: data.fields[:, column] for column, name in enumerate(FIELDS)
    }
    inputs |= {f"dense{i}": data.dense[:, i] for i in range(DENSE)}
    return {
        **inputs,
        **{"hist_item": data.history, "neg_hist_item": data.not_clicked, "length": data.lengths},
    }


def train(training: Training, sizes: Sizes, at: At) -> Result:
    """Fit and predict as DeepCTR-Torch's examples do."""
    at("model")
    # Imported to ask the network for a newer version.
    sys.modules.setdefault("requests", ModuleType("requests"))
    model = _make(training)
    tables, rate = count_embeddings(model), RATES[training.learner]
    if training.learner == "sgd":
        rate /= sizes.batch  # its losses are sums
    if training.kind == "converted":
        at("convert")
        convert(model, training.learner, rate)
    at("fit")
    several = training.case.model in _TASKS
    data = clicks()
    labels = data.train.labels if several else data.train.labels[:, :1]
    loss: Any = ["binary_crossentropy"] * 2 if several else "binary_crossentropy"
    model.compile(torch_optimizer(model, training, rate), loss)
    history = model.fit(
        _inputs(data.train), labels, batch_size=sizes.batch, epochs=sizes.epochs, verbose=0
    )
    at("evaluate")
    scores = model.predict(_inputs(data.test), batch_size=1024)
    return {
        "tables": tables,
        "losses": [float(loss) for loss in history.history["loss"]],
        "metrics": _metrics(scores, data.test.labels),
    }


def _metrics(scores: NDArray[np.float64], labels: NDArray[np.float32]) -> dict[str, float]:
    from sklearn.metrics import log_loss, roc_auc_score

    found = {}
    for task in range(scores.shape[1]):
        suffix = str(task + 1) if scores.shape[1] > 1 else ""
        right, said = labels[:, task], np.clip(scores[:, task], 1e-7, 1 - 1e-7)
        found[f"auc{suffix}"] = float(roc_auc_score(right, said))
        found[f"logloss{suffix}"] = float(log_loss(right, said))
    return found
