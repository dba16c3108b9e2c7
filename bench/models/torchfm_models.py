"""The models of pytorch-fm (package `torchfm`), with the settings of its own examples."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from models.cases import At, Case, Result, Sizes, Training
from models.click_data import FIELDS, clicks
from models.lazy_adam import LazyAdam
from models.tables import RATES, convert, count_embeddings
from torch import nn

_MLP: dict[str, Any] = {"embed_dim": 16, "mlp_dims": (16, 16), "dropout": 0.2}
#: Module, class and arguments beside the fields' sizes.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lr": ("lr", "LogisticRegressionModel", {}),
    "fm": ("fm", "FactorizationMachineModel", {"embed_dim": 16}),
    "ffm": ("ffm", "FieldAwareFactorizationMachineModel", {"embed_dim": 4}),
    "fnn": ("fnn", "FactorizationSupportedNeuralNetworkModel", _MLP),
    "wd": ("wd", "WideAndDeepModel", _MLP),
    "ipnn": ("pnn", "ProductNeuralNetworkModel", {**_MLP, "method": "inner"}),
    "opnn": ("pnn", "ProductNeuralNetworkModel", {**_MLP, "method": "outer"}),
    "dcn": ("dcn", "DeepCrossNetworkModel", {**_MLP, "num_layers": 3}),
    "nfm": (
        "nfm",
        "NeuralFactorizationMachineModel",
        {"embed_dim": 64, "mlp_dims": (64,), "dropouts": (0.2, 0.2)},
    ),
    "ncf": (
        "ncf",
        "NeuralCollaborativeFiltering",
        {**_MLP, "user_field_idx": np.array([0]), "item_field_idx": np.array([1])},
    ),
    "fnfm": (
        "fnfm",
        "FieldAwareNeuralFactorizationMachineModel",
        {"embed_dim": 4, "mlp_dims": (64,), "dropouts": (0.2, 0.2)},
    ),
    "dfm": ("dfm", "DeepFactorizationMachineModel", _MLP),
    "xdfm": (
        "xdfm",
        "ExtremeDeepFactorizationMachineModel",
        {**_MLP, "cross_layer_sizes": (16, 16), "split_half": True},
    ),
    "afm": (
        "afm",
        "AttentionalFactorizationMachineModel",
        {"embed_dim": 16, "attn_size": 16, "dropouts": (0.2, 0.2)},
    ),
    "afi": (
        "afi",
        "AutomaticFeatureInteractionModel",
        {
            **{"embed_dim": 16, "atten_embed_dim": 64, "num_heads": 2, "num_layers": 3},
            **{"mlp_dims": (64, 64), "dropouts": (0.2, 0.2, 0.2)},
        },
    ),
    "afn": (
        "afn",
        "AdaptiveFactorizationNetwork",
        {"embed_dim": 16, "LNN_dim": 64, "mlp_dims": (64, 64), "dropouts": (0.0, 0.0, 0.0)},
    ),
}


def cases(sizes: Sizes) -> list[Case]:
    """Return a case for each model."""
    return [Case("torchfm", name, cls) for name, (_, cls, _) in MODELS.items()]


def train(training: Training, sizes: Sizes, at: At) -> Result:
    """Train as pytorch-fm's example does: binary cross-entropy, then AUC."""
    at("model")
    module, cls, settings = MODELS[training.case.name]
    torch.manual_seed(training.seed)
    made = getattr(import_module(f"torchfm.model.{module}"), cls)
    model: nn.Module = made(list(FIELDS.values()), **settings)
    tables, rate = count_embeddings(model), RATES[training.learner]
    if training.kind == "converted":
        at("convert")
        convert(model, training.learner, rate)
    at("fit")
    optimizer = torch_optimizer(model, training, rate)
    losses = _fit(model, optimizer, sizes)
    at("evaluate")
    return {"tables": tables, "losses": losses, "metrics": _evaluate(model)}


def torch_optimizer(model: nn.Module, training: Training, rate: float) -> torch.optim.Optimizer:
    """Return PyTorch's optimizer over all parameters of a model."""
    if training.learner == "lazy_adam" and training.kind == "original":
        return LazyAdam(model, rate)
    kinds: dict[str, Any] = {"adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    kind = kinds.get(training.learner, torch.optim.Adam)
    made: torch.optim.Optimizer = kind(model.parameters(), lr=rate)
    return made


def _fit(model: nn.Module, optimizer: torch.optim.Optimizer, sizes: Sizes) -> list[float]:
    data = clicks().train
    fields, labels = torch.from_numpy(data.fields), torch.from_numpy(data.labels[:, 0])
    losses = []
    model.train()
    for _ in range(sizes.epochs):
        total = 0.0
        for chosen in torch.randperm(len(fields)).split(sizes.batch):
            loss = nn.functional.binary_cross_entropy(model(fields[chosen]), labels[chosen])
            model.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    return losses


def _evaluate(model: nn.Module) -> dict[str, float]:
    from sklearn.metrics import log_loss, roc_auc_score

    data = clicks().test
    model.eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(data.fields)).double().numpy()
    labels = data.labels[:, 0]
    return {"auc": float(roc_auc_score(labels, scores)), "logloss": float(log_loss(labels, scores))}
