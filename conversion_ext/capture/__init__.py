"""From a user's network to a graph with all its sites, or every obstacle."""
