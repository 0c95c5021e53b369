"""Tokens: how many a prompt has, how many an answer may have, and how many it will probably have.

counters     text -> number of tokens, with local tokenizers
templates    messages -> the text a model was trained on
counting     both, off the event loop, bounded: the service the pipeline asks
bounding     max_tokens policy, and what a pool leaves (pure)
estimating   expected cost, learned from the lengths of past answers
"""
