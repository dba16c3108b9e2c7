"""Memory of devices that differ: with and without pools, and where they read the host's pages."""

from __future__ import annotations

from pathlib import Path

import cuda_backend
import programs
import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_backend.choice() != "emulation", reason="needs an emulated device with other traits"
    ),
]

# Tables of several sizes, whose outputs lie in matrices of their own: addresses are copied from the
# host, before each lookup. The initial rows are more than the ring of pinned memory has.
PROGRAM = """
import cuda_backend
cuda_backend.missing()
import sys
import numpy as np
import mpembed as mpe
from emulated import default_pool_uses, live_bytes

def train(device):
    tables = [mpe.TableConfig(n, 20_000, 32, "int4", pooling="none") for n in "ab"]
    emb = mpe.EmbeddingBagCollection(
        tables, optimizer=mpe.RowwiseAdagrad(lr=0.1), device=device, seed=3,
        cache=mpe.CacheConfig(load_factor=0.01))
    draw = np.random.default_rng(0)
    send = (lambda x: x) if device == "cpu" else (lambda x: mpe.to_device(x, device))
    emb.set_rows("a", send(np.arange(20_000)), send(draw.normal(size=(20_000, 32)).astype("f4")))
    for _ in range(5):
        ids = send(draw.integers(20_000, size=96))
        offsets = send(np.arange(0, 97, 4))
        found = emb.forward(ids, offsets)
        grads = {n: send(draw.normal(size=(48, 32)).astype("f4")) for n in found}
        emb.backward(grads)
        del found, grads, ids, offsets
    path = sys.argv[1] + "-" + device
    emb.save(path)
    mpe.EmbeddingBagCollection.load(path, device="cpu").save(path)  # without the device's name

train("cpu")
before = live_bytes()
train("cuda")
print(default_pool_uses(), live_bytes() - before)
"""


@pytest.mark.parametrize(
    ("traits", "kept"),
    [
        pytest.param({}, 0, id="pools"),
        pytest.param({"SIMT_POOLS": "0"}, 0, id="no pools"),
        pytest.param({"SIMT_PAGEABLE": "1"}, 2 << 20, id="reads pages"),  # the pinned ring
    ],
)
def test_a_training_has_the_bytes_of_the_cpu(
    traits: dict[str, str], kept: int, cuda: str, tmp_path: Path
) -> None:
    # A program of its own: traits are read once.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = programs.call(tmp_path, program, tmp_path / "tables", timeout=120, **traits)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", str(kept)]  # the process's pool is left alone
    on_cpu, on_device = ((tmp_path / f"tables-{name}").read_bytes() for name in ("cpu", "cuda"))
    assert on_cpu == on_device


AT_EXIT = """
import cuda_backend
cuda_backend.missing()
import numpy as np
import mpembed as mpe

class Cycle:
    pass

table = mpe.TableConfig("t", 100, 8, "int8", placement="host")
kept, cycle = (
    mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(lr=0.1), device="cuda",
                               cache=mpe.CacheConfig(num_sets=1))
    for _ in range(2))
ids, offsets = (mpe.to_device(np.arange(n), "cuda") for n in (20, 21))
for emb in (kept, cycle):
    out = emb.forward(ids, offsets)
owner = Cycle()
owner.own, owner.emb = owner, cycle  # collected by the interpreter's last garbage collection
del cycle, emb, owner
"""


def test_a_process_ends_with_tables_in_the_hosts_memory(cuda: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(AT_EXIT)
    done = programs.call(tmp_path, program, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
