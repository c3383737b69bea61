"""Building, feeding and driving models; the only place that imports torch at module level."""
