"""What can be known of the CUDA kernels without a GPU; run as ``python tools/gpu.py``."""
