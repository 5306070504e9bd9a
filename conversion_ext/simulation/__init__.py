"""Run a converted network over time: schedule, engine, decoder, early exit."""
