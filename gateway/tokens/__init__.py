"""Tokens: how many a prompt has, how many an answer may have, and how many it will probably have.

counting     the service that the pipeline asks: counts and renders, off the event loop, bounded
prompts      the texts of a request, and how much there is of them
lanes        a few threads, a bounded line before them, a limit on waiting

Exact counts:
tokenizing   a model's tokenizer: counter, template, memory
counters     text -> number of tokens, with local tokenizers
ranks        a Hugging Face BPE counted by tiktoken, where that is proved equal
segments     cutting text where counts add up
caching      counts remembered by segment and by prefix
templates    messages -> the text a model was trained on
media        what parts that are not text cost
engine_counts  what engines count, where the gateway has no tokenizer

Estimates of prompts:
tiers        may a prompt be estimated, or must it be counted?
deciding     where a prompt's length changes a decision (pure)
learning     tokens per byte, learned with its error; who is trusted
scripts      what kind of text it is, and how many bytes
drift        our counts and the engines'

Answers:
estimating   expected cost, learned from the lengths of past answers
bounding     max_tokens policy, and what a pool leaves (pure)
"""
