"""How mpembed is built, for ``setup.py`` and the build backend; this package is not installed."""
