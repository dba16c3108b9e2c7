"""The compiled modules: DLPack in, DLPack out, and the C API of ``include/mpembed/api.h``."""
