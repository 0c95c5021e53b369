"""The gateway: who may ask, what it costs, which engine answers, and how the answer gets back.

The rooms, in the order in which a request meets them:

    serving.py     two listeners on uvicorn, start and drain
    edge.py        uvicorn's HTTP protocol with the bounds that it lacks
    app.py         composition root: builds every part once and wires them
    listeners.py   which path of the two listeners is answered by what
    middleware/    request id, record and log line of every request
    api/           the public OpenAI dialect: receive, read, render, reply; errors; models; probes; and the
                   doors that engines serve natively (doors.py, passing.py, folding.py)
    tenants/       key -> tenant; keys made, rotated, revoked
    pipeline.py    THE request's way: one function, read from top to bottom
    call.py        Call, PromptCount, Bound, Estimate: what the rooms hand to each other
    tokens/        counting, chat templates, max_tokens policy, the estimate
    routing/       rules -> chain of pools; explain
    limits/        rates, budgets and what is held at a time: reserve, settle as it streams, refund
    fallbacks.py   attempts: queue, send, next replica, next pool; up to the first event
    activation/    pools that sleep until somebody asks, warm-up before traffic
    queueing/      who gets the next free replica of a pool
    fleet/         replicas: ledger of what is in flight, cool-down, probes, the limits that engines tell
    answering/     an answer under way: its lease, its time budget, comments in its silence, what was wasted
    relay.py       events -> client, with the clock running
    mirroring.py   copies of requests to another pool, whose answers nobody gets

What holds for all requests, or for none:

    errors.py      everything that can be refused or fail, drawn as a tree
    engine_errors.py  an engine's error in the client's vocabulary
    config/        routes.yaml: grammar (schema/), checks with line numbers (checking/), the immutable
                   snapshot (snapshot/); each with a module per section of the file
    settings.py    what flags and the environment say
    runtime.py     what lives as long as one configuration
    reloading.py   the next configuration: read, checked, swapped whole or not at all
    state/         what was decided at run time: the overlay on the file, in SQLite
    admin/         the admin API and its key
    telemetry/     metrics, traces, logs, the record of each request
    scraping.py    what the metrics read when somebody scrapes them
    asking.py      one question over HTTP, bounded in size and time
    tasks.py       background tasks, none of them orphaned

For operators, without traffic:

    examining/     what is at a URL, what engines say of themselves, how fast they are; the checklist
    replay/        the digital twin: scheduler and router over simulated engines, in virtual time
    planning/      fitting what was measured; sizing fleets: the formulas, each with its numbers
    cli/           headgate serve | check | explain | doctor | tokenizers | engine | demo | keys | limits |
                   replay | calibrate | plan

The gateway knows engines by `backends.contract` alone; only app.py (and the command line, for simulated
engines) imports more of `backends`. `pyproject.toml` holds the layers, and `make test` enforces them.

Where does something new belong? An engine: a folder in `backends/` and a line in `backends/registry.py`.
A condition of a rule: `config/schema/rules.py`, `When`, and `routing/router.py:mismatch_of`. A limit:
`limits/`. A policy on lengths: `tokens/bounding.py`. An order in the queue: `queueing/`. A header:
`api/replies.py`.
"""
