"""Talking to a model: engine → session → chat, serve, page; memory beside them."""
