"""Runs llama.cpp's own server: `python -m tests.llm.llama_server MODEL PORT KEY`."""

import signal
import sys

from xllamacpp import CommonParams, Server

READY = "llama.cpp listens"


def main() -> None:
    params = CommonParams()
    params.model.path, port, key = sys.argv[1:]
    params.port = int(port)
    params.api_keys = [key]
    params.chat_template = "gemma"
    params.use_jinja = False  # the template has a name, no text
    params.n_ctx = 1024
    params.n_parallel = 1
    params.verbosity = -1  # nobody reads stderr after READY
    server = Server(params)
    sys.stderr.write(f"{READY} on {server.listening_address}\n")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
