"""The options of `lineahead serve` reach the engine, or are refused by name."""

import pytest
from click.testing import CliRunner

from lineahead.cli import main
from lineahead.errors import InputError
from lineahead.runtime.engine.engine import Engine


class SeenError(Exception):
    """What the engine was opened with."""


@pytest.fixture
def opened(monkeypatch, tmp_path):
    def serve(*arguments):
        def load(folder, *, config, observer, **options):
            raise SeenError(config, options)

        monkeypatch.setattr(Engine, "load", load)
        return CliRunner().invoke(main, ["serve", str(tmp_path), *arguments])

    return serve


def test_options_reach_the_engine(opened):
    result = opened(
        *("--slots", "3", "--queue", "5", "--chunk", "32", "--prefill-budget", "96", "--prefix-cache", "2"),
        *("--timeout", "7.5", "--ungoverned", "--ignore-position-limit", "--speculate", "lookup"),
        *("--draft-length", "4", "--threads", "1", "--precision", "int4", "--implementation", "function"),
    )
    config, options = result.exception.args
    assert (config.slots, config.queue, config.chunk, config.prefill_budget) == (3, 5, 32, 96)
    assert (config.prefix_cache_bytes, config.default_timeout_s) == (2 << 20, 7.5)
    assert not config.governed
    assert config.ignore_position_limit
    assert options == {
        "backend": "onnxruntime",
        "precision": "int4",
        "provider": "cpu",
        "threads": 1,
        "drafter": "lookup",
        "draft_nodes": 4,
        "implementation": "function",
        "rebuild": False,
    }


def test_drafts_are_governed_unless_told_otherwise(opened):
    config, _ = opened().exception.args
    assert config.governed


@pytest.mark.parametrize(
    ("option", "value"),
    [("--slots", "0"), ("--prefix-cache", "-1"), ("--draft-length", "0"), ("--timeout", "0")],
)
def test_a_value_out_of_range_is_refused_by_name(opened, option, value):
    result = opened(option, value)
    assert result.exit_code == InputError.exit_code
    assert f"{option} {value}" in result.output
    assert "Traceback" not in result.output
