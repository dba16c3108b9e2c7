"""Public models before and after `mpembed.torch.convert`: which run, and with which metrics."""
