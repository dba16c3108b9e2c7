"""The door for arrays: NumPy's and every DLPack exporter's become a View."""

from mpembed._device cimport Stream
from mpembed._view cimport View


cpdef View view(object obj, str name, Stream on=*)
