"""Engines that are not there: they take time, hold memory, speak every dialect and fail on request.

    engine.py    what an engine does with time: a pure model of continuous batching, clock passed in
    tokens.py    a tokenizer directory as an engine reads it: ids, bytes, chat template
    speech.py    what an engine says: the next token is a hash of all tokens before it
    live.py      the model run on the event loop's clock
    options.py   how a server is set up; records.py: what it tells of its life
    faults.py    what goes wrong, how often, and the proof that it did
    server.py    HTTP: `serve` for tests and the demo, `run` for the command line
    dialects/    one for each engine kind, speaking as the real server does

Nothing here imports the gateway. The gateway's adapters and these servers were written from the same
descriptions of the wire and share no code, so that one can catch the other's mistakes.
"""
