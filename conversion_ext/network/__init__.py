"""The converted network: root module, sites, their stepping, state, time axis, record and table."""
