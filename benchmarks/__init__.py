"""What has been measured: `python -m benchmarks.NAME --help`, from the top of the repository."""
