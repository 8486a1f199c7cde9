"""The command line's manners: fast help, one-line errors with exit codes, machine output on stdout only."""

import errno
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lineahead import cli, errors
from lineahead.recipes import console


def commands(group, prefix=()):
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


ALL_COMMANDS = list(commands(cli.main))


def failing(error):
    """A command line whose only command raises `error`."""

    @click.group(cls=console.ErrorGroup)
    def main():
        pass

    @main.command()
    def fail():
        raise error

    return CliRunner().invoke(main, ["fail"])


@pytest.mark.parametrize("name", ALL_COMMANDS, ids=" ".join)
def test_every_command_explains_itself(run, name):
    result = run(*name, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    command = cli.main
    for part in name:
        command = command.commands[part]
    undocumented = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    assert not undocumented


def test_help_imports_nothing_heavy():
    """Half a second for --help: that is only possible without torch, transformers and onnxruntime."""
    program = (
        "import sys; from lineahead.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich', 'peft'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    "kind",
    [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.LineaheadError)
    ],
    ids=lambda one: one.__name__,
)
def test_our_errors_are_one_line_a_hint_and_the_exit_code_of_their_class(kind):
    result = failing(kind("layer 3:\nboth are none", hint="Set one."))
    assert result.stderr == "Error: layer 3: both are none\nHint: Set one.\n"
    assert result.stdout == ""
    assert result.exit_code == kind.exit_code != 0


def test_exit_codes_tell_the_kinds_apart():
    codes = [one.exit_code for one in errors.LineaheadError.__subclasses__()]
    assert len(set(codes)) == len(codes)


def test_ctrl_c_is_one_line_and_130():
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.startswith("Error: interrupted\nHint: ")
    assert "Traceback" not in result.output


def test_a_full_disk_is_one_line_and_names_the_file():
    result = failing(OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"))
    assert result.exit_code == errors.StorageError.exit_code
    assert "out/model.safetensors" in result.stderr.splitlines()[0]


@pytest.mark.parametrize("bug", [KeyError("x"), OSError(errno.EIO, "I/O error")], ids=["KeyError", "EIO"])
def test_bugs_keep_their_traceback(bug):
    assert failing(bug).exception is bug


def test_unknown_command_is_a_usage_error(run):
    result = run("convrt")
    assert result.exit_code == 2
    assert "convrt" in result.stderr


def test_doctor_lists_versions_as_json(run):
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    checks = {one["check"]: one for one in report["findings"]}
    assert checks["torch"]["status"] == "ok"
    assert all(one["cure"] for one in report["findings"] if one["status"] == "problem")
    assert result.exit_code == (0 if report["healthy"] else 1)


def test_doctor_refuses_a_folder_that_is_not_there(run, tmp_path):
    result = run("doctor", tmp_path / "absent")
    assert result.exit_code == errors.ArtifactError.exit_code
    assert "absent" in result.stderr


def test_doctor_says_what_is_wrong_with_an_empty_folder(run, tmp_path):
    result = run("doctor", tmp_path, "--json")
    assert result.exit_code == 1
    assert "lineahead.json" in result.stdout


def test_the_module_runs_as_a_script():
    result = subprocess.run(
        [sys.executable, "-m", "lineahead.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("lineahead")
