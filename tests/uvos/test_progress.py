"""Without a terminal, a command's progress is a line at regular intervals."""

import io
import threading

from rich.console import Console

from uvos.progress import CommandProgress


class Lines(io.StringIO):
    """Collects text and signals when the third line has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.has_three = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count("\n") >= 3:
            self.has_three.set()
        return written


def test_a_line_is_printed_at_intervals_although_no_step_ends() -> None:
    output = Lines()
    with CommandProgress(console=Console(file=output), line_every_s=0.02) as progress:
        progress.update("training", 7, 20, detail="loss 0.5")
        assert output.has_three.wait(10)
    assert output.getvalue().startswith("training loss 0.5: 7 of 20 after 0 s\n")


def test_the_last_state_is_printed_at_the_end() -> None:
    output = io.StringIO()
    with CommandProgress(console=Console(file=output), line_every_s=60) as progress:
        progress.update("decoding", 1)
        progress.update("decoding", 2)
    assert output.getvalue() == "decoding: 2 after 0 s\n"


def test_disabled_progress_prints_nothing() -> None:
    output = io.StringIO()
    with CommandProgress(console=Console(file=output), enabled=False) as progress:
        progress.update("decoding", 1)
    assert output.getvalue() == ""


def test_a_terminal_shows_bars() -> None:
    output = io.StringIO()
    with CommandProgress(console=Console(file=output, force_terminal=True)) as progress:
        progress.update("decoding", 1, 2)
    assert "━" in output.getvalue()
    assert "after" not in output.getvalue()
