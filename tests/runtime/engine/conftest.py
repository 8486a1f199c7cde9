"""An engine over the toy model: fast, and every mistake changes the text."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from lineahead.runtime.drafters import LookupDrafter, NoDrafter
from lineahead.runtime.engine import Engine, EngineConfig, Request
from lineahead.runtime.sampling import SamplingParams


class Letters:
    """A tokenizer of single letters."""

    def decode(self, tokens, *, special=False):
        return "".join(chr(97 + token) for token in tokens)


class Collected:
    """Sinks of many requests, read by the test's thread."""

    def __init__(self):
        self.deltas, self.ended = {}, threading.Condition()

    def __call__(self, delta):
        with self.ended:
            self.deltas.setdefault(delta.request, []).append(delta)
            self.ended.notify_all()

    def finish(self, number):
        found = self.deltas.get(number, [])
        return found[-1].finish if found else None

    def wait(self, numbers, timeout=60):
        with self.ended:
            assert self.ended.wait_for(lambda: all(self.finish(n) for n in numbers), timeout), "hangs"

    def tokens(self, number):
        return [token for delta in self.deltas[number] for token in delta.tokens]

    def text(self, number):
        return "".join(delta.text for delta in self.deltas[number])


def toy_generator(session, drafter=None, eos=(), limit=None):
    return SimpleNamespace(
        session=session,
        drafter=drafter or NoDrafter(),
        tokenizer=Letters(),
        artifact=SimpleNamespace(vocab_size=session.vocab, eos=frozenset(eos), position_limit=limit),
        encode=list,
        position_limit=lambda *, ignore=False: limit,
    )


@pytest.fixture
def make(toy):
    """Start engines over toy models; they are closed at the end."""
    made = []

    def start(session=None, *, speculate=True, observer=None, running=True, eos=(), **config):
        drafter = LookupDrafter(max_nodes=4, shortest=1) if speculate else None
        generator = toy_generator(session or toy.Session(), drafter, eos)
        config = {"chunk": 8, "prefill_budget": 8, "governed": False, **config}
        engine = Engine(generator, config=EngineConfig(**config), observer=observer)
        made.append(engine)
        return engine.start() if running else engine

    yield start
    for engine in made:
        engine.close()


@pytest.fixture
def collected():
    return Collected()


@pytest.fixture
def ask():
    """A random request."""

    def request(seed, *, prompt=None, max_tokens=24, **options):
        random = np.random.default_rng(seed)
        tokens = prompt or tuple(int(one) for one in random.integers(0, 13, random.integers(1, 40)))
        params = {
            "max_tokens": max_tokens,
            "temperature": 0.0 if seed % 2 else 0.8,
            "seed": seed,
            **options.pop("params", {}),
        }
        return Request(tokens=tokens, params=SamplingParams(**params), **options)

    return request


@pytest.fixture
def alone(make):
    """What a request's text is when nothing else is going on."""

    def text(request, session=None, **options):
        engine, found = make(session, slots=1, speculate=False, **options), Collected()
        number = engine.post(request, found)
        found.wait([number])
        engine.close()
        return found.tokens(number), found.finish(number)

    return text
