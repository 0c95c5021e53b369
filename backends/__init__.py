"""Engines: what they want to be sent, what they answer, and what that means.

    contract.py        what the gateway may know of an engine: requests, events, errors, seams
    registry.py        engine kind -> adapter, with strict options
    client.py          one replica: adapter + transport = a stream of events
    transport.py       the data path's HTTP client: bytes only
    sse.py decoding.py stopping.py openai_dialect.py text_engines.py headers.py
                       shared below the engines: framing, answers, stop strings, OpenAI's shapes
    trtllm/ triton/ tgi/ openai/
                       each: wire.py (pure: request -> bytes, bytes -> events), adapter.py (options, refusals)
    simulated/         the same engines without a GPU: a timing model with an explicit clock, real servers

Nothing here imports the gateway: engines know no tenants.
"""
