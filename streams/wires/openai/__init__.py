"""OpenAI's API over any source of text."""
