"""Where a run is shown."""
