"""Checks of what is published: the source archive and the wheels."""
