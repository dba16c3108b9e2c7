"""The Markdown page of the results."""

from __future__ import annotations

from collections import Counter

from models.cases import Result
from models.compare import Comparison, compare
from models.recbole_shims import SHIMS

#: What the report calls the optimizers.
LEARNERS = {"sgd": "SGD", "adagrad": "Adagrad", "lazy_adam": "lazy Adam", "adam": "Adam"}
HEAD = """\
# Public models, before and after `convert`

Written by `python -m bench.models`. A model is made and trained by its own library's code. For the
converted run one line stands between the two, `mpembed.torch.convert(model, "fp32", optimizer=...)`
with mpembed's optimizer of the same name and settings. Both runs have the same seed, so they start
from the same weights and see the same batches. RecBole's configurations and data are those of its
own tests, without users with many items; the other libraries get synthetic clicks. DeepCTR-Torch's
penalties on embeddings are off, except in the cases named *decay*, and in DCN and DCNMix, which
ignore that setting for their linear part. The penalties are computed from a list of weights that
the model keeps; `convert` cannot reach it and warns of it.

A model *runs* if fit and evaluation end without an error, after convert with every optimizer that
the original runs with. *Loss* is the largest relative difference of an epoch's training loss,
*metric* the largest absolute difference of a metric. A metric is *equal* if it differs by no more
than between seeds of the original (*noise*), or by at most 0.001.

SGD and Adagrad leave a row whose gradient is zero as it is, so mpembed's are PyTorch's. PyTorch's
Adam moves all rows in every step; mpembed's, as `torch.optim.SparseAdam`, only those that a batch
reaches. *Lazy Adam* trains the original in that way too: SparseAdam for embeddings, Adam for the
rest. Under *Adam* the original has PyTorch's Adam for all, which is another optimizer; that column
says how much this matters after a few steps from random weights.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(results: list[Result]) -> str:
    """Return the whole page."""
    found = compare(results)
    parts = [HEAD, "## In short\n", _counts(found), ""]
    fails = [one for one in found if one.counts and not one.runs_after]
    if fails:
        parts += ["## Do not run after convert\n", _reasons(fails), "", _failures(fails), ""]
    unequal = [one for one in found if False in map(one.equal, LEARNERS)]
    if unequal:
        parts += ["## Metrics that differ by more than between seeds\n", _metrics(unequal), ""]
    parts += ["## All\n", _metrics([one for one in found if one.runs_after]), ""]
    before = [one for one in found if not one.runs_before]
    if before:
        parts += ["## Do not run before convert\n", _broken(before), ""]
    shims = [[f"`{name}`" if "." in name else name, why] for name, why in SHIMS.items()]
    parts += ["## What RecBole needs to run today\n", table(["shim", "reason"], shims)]
    return "\n".join(parts) + "\n"


def summary(results: list[Result]) -> str:
    """Return the counts, and the reasons of failures."""
    found = compare(results)
    fails = [one for one in found if one.counts and not one.runs_after]
    return _counts(found) + ("\n\n" + _reasons(fails) if fails else "")


def _counts(found: list[Comparison]) -> str:
    head = ["library", "cases", "run before", "have tables", "run after", "share"]
    head += [f"equal, {name}" for name in LEARNERS.values()]
    rows = []
    libraries = dict.fromkeys(one.library for one in found)
    groups = {name: [one for one in found if one.library == name] for name in libraries}
    for name, ones in {**groups, "all": found}.items():
        rows.append([name, *_row_of_counts(ones)])
    for name, ones in groups.items():
        models: dict[str, list[Comparison]] = {}
        for one in ones:
            models.setdefault(one.model, []).append(one)
        tried = [cases for cases in models.values() if any(one.counts for one in cases)]
        good = [cases for cases in tried if all(one.runs_after for one in cases if one.counts)]
        share = f"{100 * len(good) / len(tried):.0f} %" if tried else "-"
        before = sum(all(one.runs_before for one in cases) for cases in models.values())
        counts = [len(models), before, len(tried), len(good)]
        rows.append([f"{name}, models", *map(str, counts), share, *[""] * len(LEARNERS)])
    return table(head, rows)


def _row_of_counts(ones: list[Comparison]) -> list[str]:
    tried = [one for one in ones if one.counts]
    good = sum(one.runs_after for one in tried)
    equal = []
    for learner in LEARNERS:
        said = [one.equal(learner) for one in tried]
        known = [one for one in said if one is not None]
        equal.append(f"{sum(known)} of {len(known)}")
    share = f"{100 * good / len(tried):.0f} %" if tried else "-"
    before = sum(one.runs_before for one in ones)
    return [*map(str, (len(ones), before, len(tried), good)), share, *equal]


def reason(run: Result) -> str:
    """Return the reason of a failure in a few words."""
    text = str(run["error"]).split("\n")[0]
    return f"{run['stage']}: {text}".replace("|", "/")


def _reasons(fails: list[Comparison]) -> str:
    def short(one: Comparison) -> str:
        run = one.failure("converted")
        assert run is not None
        text = str(run["error"]).split("\n")[0]
        kind, _, rest = text.partition(": ")
        if run["stage"] == "convert":  # it names the module first
            rest = rest.partition(": ")[2]
        return f"{run['stage']}: {kind}: {rest}"[:110].replace("|", "/")

    counted = Counter(short(one) for one in fails).most_common()
    return table(["cases", "reason"], [[str(count), text] for text, count in counted])


def _failures(fails: list[Comparison]) -> str:
    rows = []
    for one in fails:
        run = one.failure("converted")
        assert run is not None
        rows.append([one.library, one.name, run["learner"], reason(run)[:200]])
    return table(["library", "case", "optimizer", "reason"], rows)


def _broken(before: list[Comparison]) -> str:
    rows = []
    for one in before:
        run = one.failure("original")
        rows.append([one.library, one.name, "not run" if run is None else reason(run)[:120]])
    return table(["library", "case", "reason"], rows)


def _metrics(ones: list[Comparison]) -> str:
    head = ["library", "case", "tables", "noise"]
    for name in LEARNERS.values():
        head += [f"loss, {name}", "metric"]
    rows = []
    for one in ones:
        noise = max(one.noise.values(), default=0.0)
        row = [one.library, one.name, str(one.tables), f"{noise:.4f}"]
        for learner in LEARNERS:
            row += _differences(one, learner)
        rows.append(row)
    return table(head, rows)


def _differences(one: Comparison, learner: str) -> list[str]:
    metric, loss = one.metric_difference(learner), one.loss_difference(learner)
    if metric is None:
        return ["", ""]
    said = f"{metric:.4f}" if one.equal(learner) else f"**{metric:.4f}**"
    return ["" if loss is None else f"{loss:.1e}", said]
