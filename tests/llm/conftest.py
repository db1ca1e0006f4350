"""The results of the tests are tables in docs."""

pytest_plugins = ["tests.support.tables"]
