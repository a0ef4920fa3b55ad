"""State of a control of a dock, which the functions `resolve` return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """State of a button, a check box or a combo box.

    Parameters
    ----------
    purpose
        Tooltip while the control can be used.
    why_not
        Reason why the control cannot be used, shown as tooltip; empty if it can.
    visible
        False for a control that has no meaning in this state.
    """

    purpose: str = ""
    why_not: str = ""
    visible: bool = True

    @property
    def enabled(self) -> bool:
        """True if the control can be used."""
        return not self.why_not

    @property
    def tooltip(self) -> str:
        """Reason why the control cannot be used, or its purpose."""
        return self.why_not or self.purpose
