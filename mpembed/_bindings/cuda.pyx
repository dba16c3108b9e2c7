"""The function table of the CUDA kernels. Importing it needs no driver."""

from cpython.pycapsule cimport PyCapsule_New

from mpembed._bindings.api cimport mpe_cuda_backend, mpe_cuda_load_optimizer

BACKEND = PyCapsule_New(<void*>mpe_cuda_backend(), "mpembed.backend", NULL)
LOAD_OPTIMIZER = PyCapsule_New(<void*>mpe_cuda_load_optimizer, "mpembed.load_optimizer", NULL)
