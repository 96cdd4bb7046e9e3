"""What people see of a run: the event log, and the console, pages and services that show it."""
