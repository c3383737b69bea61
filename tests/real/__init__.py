"""Tests on public data and a real model, which lie beside the repository and are never part of it."""
