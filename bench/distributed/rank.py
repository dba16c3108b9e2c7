"""``python -m distributed.rank RANK FOLDER``: one rank; the runner starts it."""

import json
import os
import sys
import warnings
from pathlib import Path

from distributed import worker
from distributed.cases import Setting


def main(rank: int, folder: Path) -> None:
    """Compare on this rank, and write what it took."""
    # TorchRec calls what PyTorch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning)
    given = json.loads((folder / "setting.json").read_text())
    setting = Setting(**given["setting"])
    worker.join(rank, setting.world, str(folder / "store"))
    found = worker.compare(setting, given["names"])
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an orderly end
