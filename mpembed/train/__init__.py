"""Train a DLRM on click logs under several table settings: the job behind ``mpembed train``.

The modules here need the packages of the extra ``mpembed[train]``; importing :mod:`mpembed` alone
imports none of them.
"""

#: What the extra ``mpembed[train]`` installs, by the names to import.
PACKAGES = ("torch", "pyarrow", "rich", "typer", "matplotlib")
#: What ``mpembed score`` needs of them.
SCORE_PACKAGES = ("pyarrow", "rich", "typer")
