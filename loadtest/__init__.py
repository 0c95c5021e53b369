"""`headgate replay` against sockets: an open-loop load test for anything that speaks OpenAI's API.

    workloads.py   what is asked and when: token distributions, datasets, traces -> planned requests
    arrivals.py    poisson or constant times, for workloads that have none of their own
    prompts.py     words -> prompts of a size in tokens, calibrated by the server's own usage
    sending.py     one request: send, read the answer, time it. A plain HTTP client: it knows no gateway
    running.py     warm-up and the open loop
    summary.py     samples -> what a client saw
    classes.py     samples -> the replay's figures: by class, goodput, fairness
    comparing.py   one run against another; regressions
    targets.py     whom we may load
    fleet.py       the harness: engines and gateways as processes (processes.py), one policy after the other
    ordering.py    do sockets put policies in the order that the twin foresaw?
    run_command.py, fleet_command.py, arguments.py, outcome.py
                   the command line

Traces, figures and pages come from gateway/replay/. README.md says what each number means, and does not.
"""
