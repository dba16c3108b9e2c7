"""Import of arrays: NumPy's and every DLPack exporter's become a View."""

from mpembed._bindings.device cimport Stream
from mpembed._bindings.view cimport View


cpdef View view(object obj, str name, Stream on=*)
