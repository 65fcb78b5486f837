"""What happens to a run when something goes wrong, measured: `python -m benchmarks.reliability`."""
