"""The machine that agentsd runs on: files written whole, clocks, and fast number formats."""
