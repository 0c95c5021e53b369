"""An answer under way, and what goes on beside it while the relay hands it to the client.

answer.py      the lease on its slot and its upstream connection, and what it has cost so far
budgets.py     a generation that ends with what there is when its time is over
commenting.py  comments in a stream that is silent: its place in line, signs of life
watchdog.py    one timer for the many short waits of a stream
abandoning.py  what engines computed for nobody
"""
