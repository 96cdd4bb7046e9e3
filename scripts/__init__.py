"""Small programs around the project: python -m scripts.NAME."""
