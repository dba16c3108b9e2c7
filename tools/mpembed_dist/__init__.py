"""Checks of the published files: the source archive and the wheels."""
