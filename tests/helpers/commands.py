"""Command lines, run in this process."""

from typer.testing import CliRunner

from rmuse_interp.cli import app


def rmuse(*words: object):
    """What a command line prints, on either stream, and its exit code."""
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object):
    """The same, for a command line that must succeed."""
    result = rmuse(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(*words: object) -> str:
    """The one line on stderr of a command line that must be refused with exit code 2."""
    result = rmuse(*words)
    assert result.exit_code == 2, (result.exit_code, result.output)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]
