"""llmpipe: raw text to an aligned chat model you can talk to, from one recipe."""

__version__ = "0.1.0"
