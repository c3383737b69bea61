"""The page on which people rank: an app of its own behind the guard of serve, a one-time link for each annotator."""
