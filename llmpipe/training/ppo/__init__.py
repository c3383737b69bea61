"""Proximal policy optimisation for language models: `trainer` drives, `core` holds the formulas."""
