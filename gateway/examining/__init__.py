"""Finding out about engines, without any client: for operators, before there is traffic.

discovery.py    what is at a URL: asked, recognised, asked again; config/drafting.py writes the file
inspecting.py   asking engines about themselves: health, limits, token counts, streaming
calibrating.py  measuring how fast one engine is, by its streams; planning/fitting.py makes sense of it
checklist.py    what should be known before production, from the file and from what was seen
"""
