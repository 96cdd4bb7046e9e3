"""The display of a run: its event log, and the console, pages and services that show it."""
