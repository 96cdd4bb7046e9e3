"""The command line: argparse declares every flag, and the result, Options, is read-only."""
