"""How mpembed is built: ``setup.py`` and the build backend import this; it is not installed."""
