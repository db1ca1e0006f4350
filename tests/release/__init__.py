"""Tests of what `make dist` has built."""
