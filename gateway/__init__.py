"""The gateway: who may ask, what it costs, which engine answers, and how the answer gets back.

The rooms, in the order in which a request meets them:

    serving.py     two listeners on uvicorn, start and drain
    edge.py        uvicorn's HTTP protocol with the bounds that it lacks
    app.py         composition root: builds every part once and wires them; the routes
    middleware/    request id, record and log line of every request
    api/           the public OpenAI dialect: receive, read, render, reply; errors; models; probes; and the
                   doors that engines serve natively (doors.py, passing.py)
    tenants/       key -> tenant; keys made, rotated, revoked
    state/         what was decided at run time: the overlay on the file, in SQLite
    pipeline.py    THE request's way: one function, read from top to bottom
    call.py        Call, PromptCount, Bound, Estimate: what the rooms hand to each other
    tokens/        counting, chat templates, max_tokens policy, the estimate
    routing/       rules -> chain of pools; explain
    limits/        rates, budgets and what is held at a time: reserve, settle as it streams, refund
    fallbacks.py   attempts: queue, send, next replica, next pool; up to the first event
    activation/    pools that sleep until somebody asks, warm-up before traffic
    answer.py      an answer under way: the lease on its slot and its upstream connection
    budgets.py     a generation that ends with what there is when its time is over
    abandoning.py  what engines computed for nobody
    queueing/      who gets the next free replica of a pool
    fleet/         replicas: ledger of what is in flight, cool-down, probes, the limits that engines tell
    relay.py       events -> client, with the clock running (watchdog.py)
    runtime.py     what lives as long as one configuration
    reloading.py   the next configuration: read, checked, swapped whole or not at all
    discovery.py   what is at a URL: asked, recognised, asked again; config/drafting.py writes the file
    asking.py      one question over HTTP, bounded in size and time
    inspecting.py  asking engines about themselves: health, limits, token counts, streaming
    checklist.py   what an operator should know before production, from the file and from what was seen
    config/        routes.yaml: grammar, checks with line numbers, the immutable snapshot
    admin/         the admin API and its key
    telemetry/     metrics, traces, logs, the record of each request
    replay/        the digital twin: scheduler and router over simulated engines, in virtual time
    calibrating.py measuring how fast one engine is, by its streams
    planning/      fitting what was measured; sizing fleets: the formulas, each with its numbers
    engine_errors.py  an engine's error in the client's vocabulary
    errors.py      everything that can be refused or fail, drawn as a tree
    cli/           headgate serve | check | explain | doctor | tokenizers | engine | demo | keys | limits |
                   replay | calibrate | plan

The gateway knows engines by `backends.contract` alone; only app.py (and the command line, for simulated
engines) imports more of `backends`. `pyproject.toml` holds the layers, and `make test` enforces them.

Where does something new belong? An engine: a folder in `backends/` and a line in `backends/registry.py`.
A condition of a rule: `config/schema.py`, `When`, and `routing/router.py:mismatch_of`. A limit: `limits/`.
A policy on lengths: `tokens/bounding.py`. An order in the queue: `queueing/`. A header: `api/replies.py`.
"""
