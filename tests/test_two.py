"""``.ci/two``: commands side by side, each one's output whole, and no failure is lost."""

import os
import signal
import subprocess
import time
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


def test_ctrl_c_ends_it_before_the_commands_that_wait(tmp_path):
    commands = f"touch '{tmp_path}/begun'; sleep 5\n\nsleep 5\ntouch '{tmp_path}/third'\n"
    run = subprocess.Popen(
        [TWO], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # may be ignored here
    )  # fmt: skip
    run.stdin.write(commands.encode())
    run.stdin.close()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait(20) != 0
    assert not (tmp_path / "third").exists()


def test_bytes_that_are_no_text_are_passed_on():
    done = subprocess.run([TWO], input=b"echo \xff; exit 3\n", capture_output=True)
    assert done.returncode == 1
    assert b"\n\xff\nexit 3 after" in done.stdout
