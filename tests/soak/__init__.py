"""The soak test: many viewers who come, go, stall and lie, for minutes; nothing may grow."""
