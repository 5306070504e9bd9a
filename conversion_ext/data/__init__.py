"""What users hand over as data, and how several processes share it."""
