"""The HTML pages: results, and a run in training."""
