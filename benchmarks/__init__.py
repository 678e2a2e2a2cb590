"""What costs what: ``python -m benchmarks [part ...]``."""
