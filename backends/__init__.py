"""Engines: what they want to be sent, what they answer, and what that means.

    contract.py        what the gateway may know of an engine: requests, events, errors, seams
    registry.py        engine kind -> adapter, with strict options; and which engine is behind a URL
    identifying.py     the questions and answers by which an unknown engine is recognised
    client.py          one replica: adapter + transport = a stream of events
    fanning.py         one request in several calls, where the engine takes one prompt or one choice at a time
    doors.py           what engines serve natively: bodies and answers passed on as they came
    transport/         the data path's HTTP client: bytes only
    sse.py decoding.py stopping.py openai_dialect.py openai_cutting.py openai_adapter.py text_engines.py
    headers.py answers.py prometheus.py
                       shared below the engines: framing, answers, stop strings, OpenAI's shapes, metrics
    error_table.py openai_errors.py
                       what engines' errors mean: rules, tried in order, with examples; see docs/errors.md
    mapping.py openai_parameters.py text_parameters.py
                       what becomes of a request's parameters: the rules, and those that engines share
    parameters.py      docs/parameters.md, printed from all tables
    trtllm/ triton/ triton_openai/ tgi/ vllm/ sglang/ llamacpp/ openai/
                       each: wire.py (pure: request -> bytes, bytes -> events), errors.py (what it says when
                       it fails), adapter.py (options), load.py (how busy it is), metadata.py (what it serves,
                       how it is recognised), sleeping.py (how it gives its memory up and takes it back)
    simulated/         the same engines without a GPU: a timing model with an explicit clock, real servers

Nothing here imports the gateway: engines know no tenants.
"""
