"""What calibration data tells about a network: statistics of each site, collected, saved, merged."""
