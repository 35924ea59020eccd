"""The parts of benchmarks/ablation.py."""
