"""The HTML pages of test results and of a run in training."""
