"""An open-loop load test for anything that speaks OpenAI's API. A plain HTTP client: it knows no gateway.

    workloads.py   what is asked: token distributions, datasets, traces -> planned requests
    arrivals.py    when: poisson, constant, or as recorded
    prompts.py     words -> prompts of a size in tokens, calibrated by the server's own usage
    sending.py     one request: send, read the answer, time it
    running.py     warm-up and the open loop
    summary.py     samples -> figures; compare
    targets.py     whom we may load

README.md says what each number means, and what it does not.
"""
