"""Optimizers of your own, written in CUDA C++ and compiled when they are used; see the guide.

Importing this module compiles nothing and needs no compiler, CUDA or cuda-core.
"""

from mpembed.cuda._optimizer import Optimizer
from mpembed.cuda._sources import CompileError

__all__ = ["CompileError", "Optimizer"]
