"""The function table of the CUDA kernels. Importing it needs no driver."""

from cpython.pycapsule cimport PyCapsule_New

from mpembed._bindings.api cimport mpe_cuda_backend

BACKEND = PyCapsule_New(<void*>mpe_cuda_backend(), "mpembed.backend", NULL)
