"""routes.yaml, from its text to the snapshot that the gateway runs on.

positions.py    YAML with the line of each value, and `${VARIABLES}`
schema/         the grammar: every key, a module per section of the file
reading.py      text -> sections, as much as can be read; what cannot is said, with its line
checking/       what only the whole file can tell, section by section; coverage.py: which rule takes what
limiting.py     limits, which stand in five places, as one list
building.py     a checked file -> the snapshot; cannot fail
snapshot/       what it is built of: immutable, every name resolved, the same sections
loading.py      all of that in one call
problems.py     what is wrong, where, and what was perhaps meant
profiles.py addresses.py redis_urls.py
                calibrations, addresses and Redis URLs, as they are written
drafting.py     a file for engines that were found
"""
