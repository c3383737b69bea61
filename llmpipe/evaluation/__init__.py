"""Measuring models: perplexity of text, answers to prompts."""
