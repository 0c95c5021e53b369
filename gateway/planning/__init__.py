"""How fast is an engine, and how many of them does it take? Pure arithmetic: no clock, no sockets.

    fitting.py    measured times -> the constants of a step, with what each is worth
    shapes.py     a model's config.json -> bytes of its weights and of its cache
    formulas.py   the formulas operators use, each with its numbers, so that it can be checked by hand
    sizing.py     traffic and objectives -> replicas of each pool; held against a replay
    shares.py     pools whose share of the work is not their share of the capacity

`gateway/examining/calibrating.py` measures, `gateway/replay/` replays, `headgate calibrate` and
`headgate plan` put it together.
"""
