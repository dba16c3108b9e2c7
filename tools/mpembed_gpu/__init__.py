"""What can be known of the CUDA kernels without a GPU; run as ``python -m mpembed_gpu``."""
