"""Train `headgate-mini`, the small tokenizer of the demo, the simulated engines and the tests.

    python deploy/tokenizers/train.py [OUTPUT_DIRECTORY]

A byte-level BPE of about four thousand tokens over the texts in `corpus/`, which were written for this
purpose and belong to the project. Its shape is that of Llama 3, so that everything which has to be right
for a real model is exercised on a file of a few hundred kilobytes: the same pre-tokenizer pattern, a BOS
that the post-processor adds, header and end-of-turn tokens at the end of the vocabulary, and a chat
template in a file of its own. Training is deterministic: the same corpus gives the same bytes.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
OUTPUT = HERE / "headgate-mini"

VOCABULARY = 4096
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before merging: the pattern of Llama 3 (its tokenizer.json, `pre_tokenizer`)."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] | trim }}
            {%- else %}
                {{- raise_exception('This model reads text only, not ' + part['type'] + '.') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- for call in message['tool_calls'] or [] %}
        {{- {'name': call['function']['name'], 'parameters': call['function']['arguments']} | tojson }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def train() -> Tokenizer:
    """The tokenizer, from the corpus alone."""
    tokenizer = Tokenizer(BPE(byte_fallback=False, ignore_merges=True))
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        min_frequency=1,  # the corpus is small: rare words fill the vocabulary
        initial_alphabet=ByteLevel.alphabet(),  # so that every byte of every text has a token
        show_progress=False,
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt"))]
    tokenizer.train_from_iterator(texts, trainer)
    # After the training, so that the special tokens get the highest ids, as in Llama 3.
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    bos = SPECIAL_TOKENS[0]
    bos_id = tokenizer.token_to_id(bos)
    assert bos_id is not None
    tokenizer.post_processor = ProcessorSequence(
        [
            ByteLevelProcessor(trim_offsets=True),
            TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
            ),
        ]
    )
    return tokenizer


def configuration(tokenizer: Tokenizer) -> dict[str, object]:
    """What `transformers` and the engines read beside tokenizer.json."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False,
            "rstrip": False, "single_word": False, "special": True,
        }
        for token in SPECIAL_TOKENS
    }  # fmt: skip
    return {
        "added_tokens_decoder": added,
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write(directory: Path) -> None:
    """Train and write the three files of the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    text = json.dumps(configuration(tokenizer), ensure_ascii=False, indent=2)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
