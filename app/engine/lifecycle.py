"""Whether this process still takes work, and who has to be told when it no longer does."""

from collections.abc import Callable


class Lifecycle:
    """One process's way from serving to draining; there is no way back."""

    def __init__(self) -> None:
        self.draining = False
        """Whether new work is refused and open streams are being ended."""
        self.on_drain: list[Callable[[], None]] = []
        """Called once when draining begins; must not wait or raise."""

    def drain(self) -> None:
        """Take no new work from now on."""
        if not self.draining:
            self.draining = True
            for call in self.on_drain:
                call()
