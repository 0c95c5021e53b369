"""Text as a hash of the context: the same for the same ids, different for any other."""

from statistics import mean

import pytest

from backends.simulated.speech import Speaker, Transcript, dominant_script


def prompt_for(tokenizer, text, answer=""):
    rendered = tokenizer.render([{"role": "system", "content": "Help."}, {"role": "user", "content": text}])
    return tokenizer.encode(rendered + answer, add_special_tokens=False)


def say(speaker, prompt, limit=400, **options):
    speech = speaker.speak(prompt, **options)
    ids = []
    while len(ids) < limit:
        ids.append(speech.next())
        if ids[-1] == speaker.tokenizer.eos_id:
            break
    return ids


@pytest.fixture(scope="module")
def speaker(tokenizer):
    return Speaker(tokenizer, mean_tokens=40)


def test_same_context_same_text(tokenizer, speaker):
    prompt = prompt_for(tokenizer, "How deep is the canal?")
    assert say(speaker, prompt) == say(Speaker(tokenizer, mean_tokens=40), prompt)


def test_any_other_context_gives_other_text(tokenizer, speaker):
    """A second BOS, a lost token, another seed, another choice: each shows."""
    prompt = prompt_for(tokenizer, "How deep is the canal?")
    texts = {
        tuple(say(speaker, prompt, 12)),
        tuple(say(speaker, [tokenizer.bos_id, *prompt], 12)),
        tuple(say(speaker, prompt[1:], 12)),
        tuple(say(speaker, prompt, 12, seed=1)),
        tuple(say(speaker, prompt, 12, choice=1)),
        tuple(say(Speaker(tokenizer, seed=5), prompt, 12)),
    }
    assert len(texts) == 6


@pytest.mark.parametrize("fragments", [0.0, 0.3])
def test_an_answer_is_taken_up_where_it_was_left(tokenizer, fragments):
    """Prompt plus the beginning of the answer gives the rest of it, to the same end."""
    speaker = Speaker(tokenizer, mean_tokens=30, fragments=fragments)
    prompt = prompt_for(tokenizer, "Расскажи о канале.")
    answer = say(speaker, prompt)
    for cut in range(1, len(answer) - 1):
        assert say(speaker, prompt + answer[:cut]) == answer[cut:], cut


@pytest.mark.parametrize("question", ["How deep is the canal?", "Привет! Как дела?"])
def test_answers_encode_to_their_own_ids(tokenizer, speaker, question):
    """So resuming by text gives the same context as resuming by tokens (words with spaces only)."""
    answer = say(speaker, prompt_for(tokenizer, question))[:-1]
    assert tokenizer.encode(tokenizer.decode(answer), add_special_tokens=False) == answer


@pytest.mark.parametrize(
    ("question", "script"),
    [
        ("How deep is the canal, and who keeps the gate?", "latin"),
        ("Привет! Расскажи мне о шлюзе.", "cyrillic"),
        ("你好！请问水闸是什么？", "han"),
        ("def main():\n    return [x for x in y]", "code"),
        ("", "latin"),
    ],
)
def test_the_answer_is_in_the_script_of_the_question(tokenizer, speaker, question, script):
    assert dominant_script(question) == script
    text = tokenizer.decode(say(speaker, prompt_for(tokenizer, question)))
    assert dominant_script(text) == script
    assert "\ufffd" not in text


def test_the_last_user_message_decides(tokenizer, speaker):
    messages = [
        {"role": "user", "content": "Please describe the whole canal with every lock and every bridge."},
        {"role": "assistant", "content": "A very long answer in English words, again and again."},
        {"role": "user", "content": "Спасибо, а теперь кратко."},
    ]
    prompt = tokenizer.encode(tokenizer.render(messages), add_special_tokens=False)
    assert dominant_script(tokenizer.decode(say(speaker, prompt))) == "cyrillic"


def test_lengths_follow_the_configured_mean(tokenizer):
    speaker = Speaker(tokenizer, mean_tokens=50, spread=0.5)
    lengths = [len(say(speaker, prompt_for(tokenizer, f"Question {n}?"), 1000)) for n in range(200)]
    assert mean(lengths) == pytest.approx(51, rel=0.15)
    assert len(set(lengths)) > 20


def test_ignore_eos_never_ends(tokenizer, speaker):
    speech = speaker.speak(prompt_for(tokenizer, "x"))
    assert tokenizer.eos_id not in [speech.next(may_end=False) for _ in range(500)]


@pytest.mark.parametrize("question", ["How deep?", "Как глубоко это место?", "水有多深？", "f(x) = {};"])
def test_fragments_need_a_detokenizer_and_make_valid_text(tokenizer, question):
    """Some tokens are part of a character: alone they are no text, together they are all UTF-8."""
    speaker = Speaker(tokenizer, mean_tokens=300, spread=0.0, fragments=0.3)
    ids = say(speaker, prompt_for(tokenizer, question))[:-1]
    alone = [tokenizer.decode([token_id]) for token_id in ids]
    assert any("\ufffd" in text for text in alone)
    assert "\ufffd" not in b"".join(tokenizer.pieces[token_id] for token_id in ids).decode()
    transcript = Transcript(tokenizer)
    texts = [transcript.add(token_id)[0] for token_id in ids]
    assert "".join(texts) == tokenizer.decode(ids)
    assert "" in texts
    assert not any("\ufffd" in text for text in texts)


def feed(tokenizer, text, stop):
    transcript = Transcript(tokenizer, stop)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = visible = ""
    for number, token_id in enumerate(ids, 1):
        more, seen = transcript.add(token_id, last=number == len(ids))
        whole += more
        visible += seen
        if transcript.stopped_by is not None:
            break
    return whole, visible, transcript.stopped_by


def test_stop_strings_are_cut_and_never_shown_in_part(tokenizer):
    """They may straddle tokens; the earliest wins; the whole text runs on to the end of its token."""
    whole, visible, stopped_by = feed(
        tokenizer, "the water rises at the gate of the city", ["gate of", "city"]
    )
    assert visible == "the water rises at the "
    assert stopped_by == "gate of"
    assert whole == "the water rises at the gate of"


def test_what_only_looked_like_a_stop_string_is_shown_after_all(tokenizer):
    whole, visible, stopped_by = feed(tokenizer, "the water rises and the wat", ["water falls", "zzz"])
    assert (whole, visible, stopped_by) == ("the water rises and the wat",) * 2 + (None,)
