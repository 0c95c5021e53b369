"""Pools that may sleep, and replicas that are warmed up before they get traffic.

machine.py      the states of one pool: asleep, waking, awake, cooling; pure, the clock passed in
activators.py   how a pool is woken and put to sleep: the engine's own way, HTTP, a command, Kubernetes
sleeping.py     the asyncio shell around both: one wake for all who wait, and who waits for how long
prefixes.py     the system prompts that a pool sees most often; pure
warming.py      the requests that a replica gets first
"""
