"""A fuzzer: odd requests over a real socket, which must harm nobody. `make fuzz` runs it."""
