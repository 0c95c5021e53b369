"""Prompts of a wanted size in tokens, every one distinct.

How many tokens a word has is the server's business: the warm-up sends prompts of two sizes, reads
`usage.prompt_tokens`, and fits tokens = fixed + per_word * words. `fixed` is what the chat template adds.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORDS = """
the of and to in that is was for with as his on be at by had not are but from or have an they which one were
all we when your can said there use each she do how their if will up other about out many then them these so
some her would make like him into time has look two more write go see number no way could people my than
first water been call who its now find long down day did get come made may part over new sound take only
little work know place year live back give most very after thing our just name good sentence man think say
great where help through much before line right too mean old any same tell boy follow came want show also
around form three small set put end does another well large must big even such because turn here why ask
went men read need land different home us move try kind hand picture again change off play spell air away
animal house point page letter mother answer found study still learn should world high every near add food
between own below country plant last school father keep tree never start city earth eye light thought head
under story saw left late run while press close night real life few north open seem together next white
children begin got walk example ease paper group always music those both mark often until mile river car
feet care second book carry took science eat room friend began idea fish mountain stop once base hear horse
cut sure watch color face wood main
"""

WORDS = tuple(_WORDS.split())
"""Common English words: most are one token for most tokenizers."""

NONCE_WORDS = 3
"""Words at the start of each prompt that spell its number: distinct, and no prefix cache helps."""

BLOCK_TOKENS = 512
"""Tokens behind one hash of a trace (Mooncake's FAST'25 traces)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """tokens = fixed + per_word * words"""

    fixed: float = 8.0
    per_word: float = 1.1
    measured: bool = False
    """False: the server told no usage, these are guesses."""

    def words(self, tokens: float) -> int:
        """Words for a prompt of about `tokens`; at least those that make it distinct."""
        return max(NONCE_WORDS, round((tokens - self.fixed) / self.per_word))


def calibrate(measured: Iterable[tuple[int, int]]) -> Calibration:
    """The line through (words, tokens) by least squares; a guess where two sizes are not to be had."""
    points = list(measured)
    if len({words for words, _ in points}) < 2:
        return Calibration()
    mean_words = sum(words for words, _ in points) / len(points)
    mean_tokens = sum(tokens for _, tokens in points) / len(points)
    spread = sum((words - mean_words) ** 2 for words, _ in points)
    slope = sum((words - mean_words) * (tokens - mean_tokens) for words, tokens in points) / spread
    if slope <= 0:  # a server that tells the same usage for everything tells nothing
        return Calibration()
    return Calibration(mean_tokens - slope * mean_words, slope, measured=True)


class PromptMaker:
    """Numbered prompts. The same seed and number give the same prompt."""

    def __init__(self, seed: int, calibration: Calibration) -> None:
        self._seed = seed
        self.calibration = calibration

    def of_tokens(self, number: int, tokens: int, blocks: Sequence[int] = ()) -> str:
        """Prompt `number` of about `tokens`.

        With `blocks`, prompts share their beginnings as the trace's prompts did: one block of text for each
        hash, the nonce after them.
        """
        return " ".join(self._words(number, self.calibration.words(tokens), blocks))

    def of_words(self, number: int, words: int) -> str:
        return " ".join(self._words(number, words, ()))

    def _words(self, number: int, count: int, blocks: Sequence[int]) -> list[str]:
        words: list[str] = []
        per_block = max(1, round(BLOCK_TOKENS / self.calibration.per_word))
        for block in blocks:
            if len(words) >= count - NONCE_WORDS:
                break
            # The seed counts here too: another seed shares nothing with what an engine may still cache.
            words += random.Random(f"{self._seed}/block/{block}").choices(WORDS, k=per_block)
        del words[max(0, count - NONCE_WORDS) :]
        words += self._nonce(number)
        if (missing := count - len(words)) > 0:
            words += random.Random(f"{self._seed}/prompt/{number}").choices(WORDS, k=missing)
        return words

    def _nonce(self, number: int) -> list[str]:
        base, at = len(WORDS), number + random.Random(f"{self._seed}/nonce").randrange(1_000_000)
        return [WORDS[at // base**place % base] for place in range(NONCE_WORDS)]
