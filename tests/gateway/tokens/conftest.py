"""A real byte-level BPE, trained on the spot, with the control tokens of four families of chat templates."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

LLAMA3 = """\
{% for message in messages %}
{% set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
{% set content = head + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + call.function.name + ' ' }}
            {{- (call.function.arguments | tojson) + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + (' name=' + message.name if message.name else '') + '\\n' }}
    {%- generation %}{{- content + '<|im_end|>\\n' }}{%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{% endfor %}"""

GEMMA = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception('Invalid content type') }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "mistral": MISTRAL, "gemma": GEMMA}

SPECIAL = [
    "<s>", "</s>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
]  # fmt: skip
ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>", "    ", "role"]
"""Not special: four that steer, two that must never be broken up in a user's text."""

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the gate at the head of the canal opens slowly.",
    "def count(self, text: str) -> int:\n    return len(self.tokenizer.encode(text).ids)\n",
    "Шлюз в голове канала решает, сколько воды войдёт и по какому руслу она пойдёт.",
    "渠首的闸门决定有多少水进入以及流入哪条渠道。",
]


@pytest.fixture(scope="session")
def bpe() -> tokenizers.Tokenizer:
    """The tokenizer itself; adds `<s>` before plain prompts, as Llama's does."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(
        [tokenizers.AddedToken(content, special=False, normalized=False) for content in ADDED]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_dirs(bpe: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer directory per family; half keep the template in the config, half in its own file."""
    directories = {}
    for family, template in TEMPLATES.items():
        directory = directories[family] = tmp_path_factory.mktemp("tokenizers") / family
        directory.mkdir()
        bpe.save(str(directory / "tokenizer.json"))
        bos = "<|begin_of_text|>" if family == "llama3" else "<s>"
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": {"content": "</s>", "__type": "AddedToken"},
        }
        if family in ("chatml", "gemma"):
            config["chat_template"] = template
        else:
            (directory / "chat_template.jinja").write_text(template)
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directories
