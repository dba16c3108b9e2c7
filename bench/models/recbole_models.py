"""RecBole's models, with the configurations and data of its repository's tests."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from models import recbole_shims
from models.cases import At, Case, Result, Sizes, Training
from models.lazy_adam import LazyAdam
from models.tables import RATES, convert, count_embeddings

#: Seed of the split into training, validation and test data.
DATA_SEED = 2020
_TESTS = "tests/model"
_FILES = ("test_model_auto.py", "test_model_manual.py")


def cases(sizes: Sizes) -> list[Case]:
    """Return the configurations of RecBole's own tests of its models."""
    if sizes.recbole is None:
        return []
    found: list[Case] = []
    for name in _FILES:
        found += _test_cases(Path(sizes.recbole) / _TESTS / name)
    return found


def _test_cases(path: Path) -> list[Case]:
    """Run a test file whose tests only write down their configuration."""
    calls: list[dict[str, Any]] = []
    quick_start = ModuleType("recbole.quick_start")
    quick_start.objective_function = (  # type: ignore[attr-defined]
        lambda config_dict, **_: calls.append(dict(config_dict))
    )
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    kept = sys.modules.get("recbole.quick_start")
    sys.modules["recbole.quick_start"] = quick_start
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    finally:
        if kept is None:
            del sys.modules["recbole.quick_start"]
        else:
            sys.modules["recbole.quick_start"] = kept
    found = []
    for suite in [one for one in names.values() if isinstance(one, type)]:
        for test in [name for name in vars(suite) if name.startswith("test_")]:
            calls.clear()
            getattr(suite, test)(suite(test))
            for number, settings in enumerate(calls):
                settings = dict(settings)
                name = re.sub("^test_", "", test) + (f"_{number + 1}" if number else "")
                found.append(Case("recbole", name, settings.pop("model"), settings))
    return found


def _config(training: Training, sizes: Sizes) -> Any:
    from recbole.config import Config

    case, root = training.case, Path(str(sizes.recbole))
    settings: dict[str, Any] = {**case.settings, "model": case.model}
    settings["epochs"] = max(sizes.epochs, int(settings.get("epochs", 1)))
    length = int(settings.get("MAX_ITEM_LIST_LENGTH", sizes.list_length))
    if "train_stage" in settings:
        settings["pretrain_epochs"] = sizes.epochs
    settings |= {
        "MAX_ITEM_LIST_LENGTH": min(length, sizes.list_length),
        "user_inter_num_interval": f"[0,{sizes.user_items}]",
        "data_path": str(root / "tests/test_data") + "/",
        "train_batch_size": sizes.batch,
        "use_gpu": False,
        "show_progress": False,
        "metric_decimal_place": 8,
        "seed": training.seed,
        "learner": training.learner.removeprefix("lazy_"),
    }
    if not training.learner.endswith("adam"):  # Adam keeps the rate of the model's own settings
        settings["learning_rate"] = RATES[training.learner]
    if settings.get("pre_model_path"):
        settings["pre_model_path"] = f"saved/S3Rec-test-{sizes.epochs}.pth"
    return Config(config_dict=settings, config_file_list=[str(root / _TESTS / "test_model.yaml")])


def train(training: Training, sizes: Sizes, at: At) -> Result:
    """Fit and evaluate as RecBole's `objective_function` does."""
    recbole_shims.apply()
    if training.case.model == "KGAT":
        recbole_shims.apply_dgl()
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    if training.case.settings.get("pre_model_path"):
        at("pretraining")
        _pretrain(training, sizes)
    at("data")
    config = _config(training, sizes)
    init_seed(DATA_SEED, config["reproducibility"])
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    at("model")
    init_seed(training.seed, config["reproducibility"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    tables = count_embeddings(model)
    if training.kind == "converted" and tables:
        at("convert")
        rate, decay = float(config["learning_rate"]), float(config["weight_decay"] or 0.0)
        convert(model, training.learner, rate, decay)
    at("trainer")
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    if training.learner == "lazy_adam" and training.kind == "original":
        trainer.optimizer = LazyAdam(model, float(config["learning_rate"]))
    at("fit")
    trainer.fit(train_data, valid_data, verbose=False, saved=sizes.saved)
    at("evaluate")
    metrics = trainer.evaluate(test_data, load_best_model=sizes.saved)
    losses = getattr(trainer, "train_loss_dict", {})
    return {
        "tables": tables,
        "losses": [float(losses[epoch]) for epoch in sorted(losses)],
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
    }


def _pretrain(training: Training, sizes: Sizes) -> None:
    """Make the file of the first stage, with the model as it is."""
    settings = {"train_stage": "pretrain", "save_step": 1}
    settings["train_neg_sample_args"] = training.case.settings["train_neg_sample_args"]
    first = Case("recbole", "first_stage", training.case.model, settings)
    train(Training(first, "original", training.learner, training.seed), sizes, lambda stage: None)
