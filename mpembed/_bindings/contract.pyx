"""The numbers of include/mpembed/contract.h."""

include "contract.pxi"  # the build writes it: tools/mpembed_build/declarations.py
