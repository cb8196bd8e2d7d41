"""``.ci/two``: commands side by side, each one's output whole, and no failure is lost."""

import subprocess
from pathlib import Path

TWO = Path(__file__).parent.parent / ".ci" / "two"


def two(*commands):
    text = "\n".join(commands)
    return subprocess.run([TWO], input=text, capture_output=True, text=True, encoding="utf-8")


def test_two_commands_run_at_once_and_each_is_printed_whole_when_it_ends(tmp_path):
    waits = f"echo a; while [ ! -e '{tmp_path}/there' ]; do sleep .01; done; echo b"
    done = two(waits, f"echo c; echo d >&2; touch '{tmp_path}/there'")
    assert done.returncode == 0
    said = [line for line in done.stdout.splitlines() if line in ("a", "b", "c", "d")]
    assert said in (["a", "b", "c", "d"], ["c", "d", "a", "b"])


def test_a_failed_command_fails_the_whole_and_the_others_run():
    done = two("echo ä && exit 3", "false | true", "echo last")
    assert done.returncode == 1
    assert done.stderr == "failed: echo ä && exit 3; false | true\n"
    assert "+ echo ä && exit 3\nä\nexit 3 after 0 s\n" in done.stdout
    assert "+ echo last\nlast\nexit 0 after" in done.stdout
