"""Clicks to train on: files in Criteo's format and a built-in generator."""
