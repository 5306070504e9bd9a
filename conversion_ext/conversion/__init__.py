"""The conversion: its order, thresholds, assembly, folding, checks."""
