"""What benchmarks/fold_speed.py is made of."""
