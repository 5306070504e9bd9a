"""The demonstration: data sets, a small network, a story of one minute, and a benchmark."""
